//! Finds out when the guest's services answer for the first time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use super::Event;
use crate::guest::Probe;

/// How long the next attempt waits: a guest that boots is asked often, and one that never answers is left in peace.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// An answer that takes longer was lost: a guest that boots does not hear the first of what it is sent.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks each of the services until it has answered, in a thread of its own that ends with the program.
pub fn start(services: Vec<(SocketAddr, Probe)>, events: SyncSender<Event>) {
    let probe = move || {
        for (address, service) in services {
            let mut pause = PAUSE;
            while !answers(address, &service).unwrap_or(false) {
                std::thread::sleep(pause);
                pause = (pause * 11 / 10).min(LONGEST_PAUSE);
            }
        }
        // The rig may have ended meanwhile.
        let _ = events.send(Event::Answered);
    };
    // Without it the rig runs as well.
    let _ = std::thread::Builder::new().name("probe".to_owned()).spawn(probe);
}

/// Whether a service answers as expected; an error when it cannot be reached.
pub fn answers(address: SocketAddr, service: &Probe) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(service.question)?;
    let mut answer = vec![0; service.answer.len()];
    stream.read_exact(&mut answer)?;
    Ok(answer == service.answer)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::*;
    use crate::rig::software::COUNTER;

    #[test]
    fn services_that_come_late_are_found() {
        const GREETING: Probe = Probe { name: "ssh", port: 22, question: b"", answer: b"SSH-2.0-" };
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let (sender, events) = mpsc::sync_channel(1);
        let address = |listener: &TcpListener| listener.local_addr().unwrap();
        start(vec![(address(&listeners[0]), COUNTER), (address(&listeners[1]), GREETING)], sender);
        drop(listeners[0].accept().unwrap());
        // It is there, but not ready yet.
        listeners[0].accept().unwrap().0.write_all(b"-LOADING\r\n").unwrap();
        let mut stream = listeners[0].accept().unwrap().0;
        let mut request = [0; 6];
        stream.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"PING\r\n");
        stream.write_all(b"+PONG\r\n").unwrap();
        let mut stream = listeners[1].accept().unwrap().0;
        assert!(events.try_recv().is_err(), "one of two has answered");
        stream.write_all(b"SSH-2.0-OpenSSH_9\r\n").unwrap();
        assert!(matches!(events.recv(), Ok(Event::Answered)));
    }
}
