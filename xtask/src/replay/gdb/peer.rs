//! Whose a connection is: all of the guest's memory is to be had on the port, which is open to all users of this machine.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;

/// Whether the `peer` of a connection within this machine is of this process's user. What cannot be found out is not.
pub fn is_own(stream: &TcpStream, peer: SocketAddr) -> bool {
    let Ok(local) = stream.local_addr() else { return false };
    let (Ok(table), Ok(own)) = (fs::read_to_string("/proc/net/tcp"), fs::metadata("/proc/self")) else { return false };
    owner(&table, peer, local) == Some(own.uid())
}

/// The user of the socket at `local` that is connected with `remote`, by the kernel's table of TCP sockets (proc_net_tcp).
fn owner(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    let (local, remote) = (in_table(local)?, in_table(remote)?);
    table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let is_it = fields.next()? == local && fields.next()? == remote;
        // State, queues, timer, retransmissions, and then the user.
        is_it.then(|| fields.nth(4)?.parse().ok()).flatten()
    })
}

/// An address as the table has it: the number in network byte order, read as one of this machine's.
fn in_table(address: SocketAddr) -> Option<String> {
    match address {
        SocketAddr::V4(address) => {
            Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port()))
        }
        SocketAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const TABLE: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:8967 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:8967 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   2: 0100007F:C350 0100007F:8967 01 00000000:00000000 00:00000000 00000000  1001        0 3 1 0 20 4 30 10 -1
";

    #[test]
    fn a_connection_has_an_owner() {
        let [gdb, server, other] = [0xC350, 0x8967, 1].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(owner(TABLE, gdb, server), Some(1001));
        assert_eq!(
            (owner(TABLE, server, gdb), owner(TABLE, other, server), owner("", gdb, server)),
            (Some(0), None, None)
        );
    }

    #[test]
    fn our_own_connections_are_ours() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _gdb = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, peer) = listener.accept().unwrap();
        assert!(is_own(&stream, peer));
    }
}
