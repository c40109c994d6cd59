//! A long way to a server.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// Where `server` is reached with this delay each way, as long as the test runs.
pub fn relay(server: &str, delay: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, server) = (listener.local_addr().unwrap().to_string(), server.to_owned());
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(&server) else { continue };
            let both = [(near.try_clone(), far.try_clone()), (Ok(far), Ok(near))];
            for (from, to) in both {
                let (Ok(from), Ok(to)) = (from, to) else { continue };
                thread::spawn(move || carry(from, to, delay));
            }
        }
    });
    address
}

fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        thread::sleep(delay);
        if to.set_nodelay(true).and_then(|()| to.write_all(&buffer[..count])).is_err() {
            break;
        }
    }
    // Either end may have gone before.
    let _ = to.shutdown(std::net::Shutdown::Both);
}
