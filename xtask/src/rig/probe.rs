//! Finds out when the guest answers for the first time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::Event;

/// A guest that has not answered by then is not probed any more.
const LIMIT: Duration = Duration::from_secs(120);

/// An answer that takes longer was lost: a guest that boots does not hear the first of what it is sent.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sends PING to `service` until it is answered, in a thread of its own.
pub fn start(service: SocketAddr, events: SyncSender<Event>) {
    let probe = move || {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            match ping(service) {
                Ok(true) => {
                    // The rig may have ended meanwhile.
                    let _ = events.send(Event::Answered);
                    return;
                }
                Ok(false) => return,
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    };
    // Without it the rig runs as well.
    let _ = std::thread::Builder::new().name("probe".to_owned()).spawn(probe);
}

/// Whether the service answers as expected; an error when it cannot be reached.
fn ping(service: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&service, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    Ok(&answer == b"+PONG")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_service_that_comes_late_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (sender, events) = mpsc::sync_channel(1);
        start(listener.local_addr().unwrap(), sender);
        drop(listener.accept().unwrap());
        let mut stream = listener.accept().unwrap().0;
        let mut request = [0; 6];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(b"+PONG\r\n").unwrap();
        assert!(matches!(events.recv(), Ok(Event::Answered)));
        assert_eq!(&request, b"PING\r\n");
    }
}
