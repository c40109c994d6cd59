//! DHCP for machines that boot: what to load, and from where, said to the machines that it knows and to nobody else. Beside
//! another server that gives addresses it gives none; it may give the machines the addresses that are theirs.
//!
//! See: RFC 2131, RFC 2132; RFC 4578 (architecture of the client); Intel, "Preboot Execution Environment 2.1", 2.2.3.

use std::net::{Ipv4Addr, SocketAddrV4};

use pollux_hypervisor::config::Cidr;
use smoltcp::wire::{DhcpFlags, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket};

use super::Asker;
use crate::netboot::{BIOS_IMAGE, IPXE_SCRIPT, UEFI_IMAGE};

/// Where clients ask.
pub const SERVER_PORT: u16 = 67;
/// Where they ask a server that gives no addresses once more.
pub const PROXY_PORT: u16 = 4011;
/// Where they listen for answers.
const CLIENT_PORT: u16 = 68;
/// Seconds that an address is lent for: firmware and loader need minutes.
const LEASE: u32 = 3600;
/// The file's name in the fixed part of a packet.
const FILE: std::ops::Range<usize> = 108..236;
/// Bytes of an answer: what every client takes, and more than our options need.
const PACKET_BYTES: usize = 548;

const SUBNET_MASK: u8 = 1;
const VENDOR: u8 = 43;
const LEASE_TIME: u8 = 51;
const MESSAGE_TYPE: u8 = 53;
const SERVER: u8 = 54;
const REQUESTED: u8 = 50;
const CLASS: u8 = 60;
const USER_CLASS: u8 = 77;
const ARCHITECTURE: u8 = 93;
const MACHINE_ID: u8 = 97;
const IPXE: u8 = 175;

/// The class of clients that boot by PXE, and of those who answer them.
const PXE: &[u8] = b"PXEClient";
/// PXE's own options in an answer: take the file that is named, look for no other server.
const TAKE_THE_FILE: [u8; 4] = [6, 1, 8, 255];

/// iPXE's own options: wait for no other server that names boot files.
const WAIT_FOR_NOBODY: [u8; 3] = [176, 1, 1];

/// A machine that boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its name: what it boots lies in a directory that is called so.
    pub name: String,
    /// Of the card that it boots from.
    pub mac: [u8; 6],
    /// The address that it gets here, if it gets one.
    pub lease: Option<Cidr>,
}

/// What is answered.
#[derive(Debug, Clone)]
pub struct Server {
    /// The server's own address, for TFTP, too.
    pub address: Ipv4Addr,
    /// Who is answered: all have addresses from here, or none has, since another server gives them.
    pub clients: Vec<Client>,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Where it goes: to everybody on the network unless the client has an address.
    pub to: SocketAddrV4,
    /// Its bytes.
    pub packet: Vec<u8>,
    /// For people: who is told what.
    pub said: String,
}

/// What a client says of itself.
struct Question<'a> {
    packet: DhcpPacket<&'a [u8]>,
    kind: DhcpMessageType,
}

impl<'a> Question<'a> {
    /// Reads what a client that boots sends.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        const MAGIC: u32 = 0x6382_5363;
        let packet = DhcpPacket::new_checked(bytes).ok()?;
        // Ethernet, since answers go to such an address.
        let ours = packet.opcode() == DhcpOpCode::Request && bytes[1..3] == [1, 6] && packet.magic_number() == MAGIC;
        let kind = packet.options().find(|option| option.kind == MESSAGE_TYPE)?.data.first().copied()?;
        let question = Self { packet, kind: kind.into() };
        (ours && question.option(CLASS)?.starts_with(PXE)).then_some(question)
    }

    fn option(&self, kind: u8) -> Option<&[u8]> {
        self.packet.options().find(|option| option.kind == kind).map(|option| option.data)
    }

    /// The file for this kind of client; none for processors that we have nothing for.
    fn file(&self) -> Option<&'static str> {
        if self.option(USER_CLASS).is_some_and(|class| class.windows(4).any(|part| part == b"iPXE")) {
            return Some(IPXE_SCRIPT);
        }
        match self.option(ARCHITECTURE)? {
            [0, 0, ..] => Some(BIOS_IMAGE),
            // Two numbers for the same: the registry and its erratum differ, and firmware with them.
            [0, 7 | 9, ..] => Some(UEFI_IMAGE),
            _ => None,
        }
    }
}

impl Server {
    /// The answer to a packet `from` somebody that came in at `port`; none to what is not for us.
    pub fn answer(&self, bytes: &[u8], from: SocketAddrV4, port: u16) -> Option<Answer> {
        let question = Question::parse(bytes)?;
        let mac = question.packet.client_hardware_address().0;
        let client = self.clients.iter().find(|client| client.mac == mac)?;
        let given = client.lease.filter(|_| port == SERVER_PORT);
        let kind = match (question.kind, port) {
            (DhcpMessageType::Discover, SERVER_PORT) => DhcpMessageType::Offer,
            // Where another server gives addresses, a request for one is for that server.
            (DhcpMessageType::Request, SERVER_PORT) if given.is_some() && self.is_meant(&question) => {
                DhcpMessageType::Ack
            }
            (DhcpMessageType::Request, PROXY_PORT) => DhcpMessageType::Ack,
            _ => return None,
        };
        let file = question.file()?;
        // Asks for another address than its own: it is not told of a wrong one, and will ask anew.
        let asked = question.option(REQUESTED).and_then(|data| <[u8; 4]>::try_from(data).ok()).map(Ipv4Addr::from);
        if kind == DhcpMessageType::Ack && given.is_some_and(|given| asked.is_some_and(|asked| asked != given.address))
        {
            return None;
        }
        let packet = self.emit(&question, kind, file, given.as_ref())?;
        // A client that has an address asks a proxy from it, and listens where it asks: UEFI's at 4011.
        let has_address = port == PROXY_PORT && !from.ip().is_unspecified();
        let to = if has_address { from } else { SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT) };
        let address = given.map_or_else(String::new, |lease| format!(" at {}", lease.address));
        let said = format!("{} boots {file}{address}", format_mac(mac));
        Some(Answer { to, packet, said })
    }

    /// Whether machines have their addresses from here.
    fn gives(&self) -> bool {
        self.clients.iter().any(|client| client.lease.is_some())
    }

    /// Who asks for files from this address. Where another server gives addresses nobody knows.
    pub fn asker_at(&self, address: Ipv4Addr) -> Asker<'_> {
        if !self.gives() {
            return Asker::Unknown;
        }
        asker(self.clients.iter().find(|client| client.lease.is_some_and(|lease| lease.address == address)))
    }

    /// Who asks for files from a card with this address.
    pub fn asker_with(&self, mac: [u8; 6]) -> Asker<'_> {
        asker(self.clients.iter().find(|client| client.mac == mac))
    }

    /// Whether a request is for this server, which a client names that was offered several.
    fn is_meant(&self, question: &Question<'_>) -> bool {
        question.option(SERVER).is_none_or(|server| server == self.address.octets())
    }

    fn emit(
        &self,
        question: &Question<'_>,
        kind: DhcpMessageType,
        file: &str,
        given: Option<&Cidr>,
    ) -> Option<Vec<u8>> {
        let mut bytes = vec![0; PACKET_BYTES];
        bytes[FILE][..file.len()].copy_from_slice(file.as_bytes());
        bytes[1..3].copy_from_slice(&[1, 6]);
        let mut packet = DhcpPacket::new_unchecked(&mut bytes[..]);
        packet.set_opcode(DhcpOpCode::Reply);
        packet.set_transaction_id(question.packet.transaction_id());
        packet.set_flags(question.packet.flags() | DhcpFlags::BROADCAST);
        packet.set_client_ip(question.packet.client_ip());
        packet.set_your_ip(given.map_or(Ipv4Addr::UNSPECIFIED, |lease| lease.address));
        packet.set_server_ip(self.address);
        packet.set_client_hardware_address(question.packet.client_hardware_address());
        packet.set_magic_number(0x6382_5363);
        let mut options = packet.options_mut();
        let mut put = |kind, data: &[u8]| options.emit(DhcpOption { kind, data }).ok();
        put(MESSAGE_TYPE, &[kind.into()])?;
        put(SERVER, &self.address.octets())?;
        match given {
            Some(lease) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(lease.prefix)).unwrap_or(0);
                put(LEASE_TIME, &LEASE.to_be_bytes())?;
                put(SUBNET_MASK, &mask.to_be_bytes())?;
                put(IPXE, &WAIT_FOR_NOBODY)?;
            }
            None => {
                put(CLASS, PXE)?;
                put(VENDOR, &TAKE_THE_FILE)?;
                if let Some(id) = question.option(MACHINE_ID) {
                    put(MACHINE_ID, id)?;
                }
            }
        }
        options.end().ok()?;
        Some(bytes)
    }
}

fn asker(client: Option<&Client>) -> Asker<'_> {
    client.map_or(Asker::Stranger, |client| Asker::Machine(&client.name))
}

/// As it is written with colons.
pub fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Reads what [`format_mac`] writes; large letters are taken, too.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes = text.split(':').map(|byte| (byte.len() == 2).then(|| u8::from_str_radix(byte, 16).ok())?);
    bytes.collect::<Option<Vec<_>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
    const KNOWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const LEASE_OF_KNOWN: Cidr = Cidr { address: Ipv4Addr::new(10, 0, 2, 21), prefix: 24 };

    fn known(lease: Option<Cidr>) -> Client {
        Client { name: "castor".to_owned(), mac: KNOWN, lease }
    }

    fn proxy() -> Server {
        Server { address: ADDRESS, clients: vec![known(None)] }
    }

    fn giver() -> Server {
        Server { address: ADDRESS, clients: vec![known(Some(LEASE_OF_KNOWN))] }
    }

    fn question(kind: DhcpMessageType, mac: [u8; 6], more: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 400];
        bytes[1..3].copy_from_slice(&[1, 6]);
        let mut packet = DhcpPacket::new_unchecked(&mut bytes[..]);
        packet.set_opcode(DhcpOpCode::Request);
        packet.set_transaction_id(77);
        packet.set_client_hardware_address(smoltcp::wire::EthernetAddress(mac));
        packet.set_magic_number(0x6382_5363);
        let mut options = packet.options_mut();
        options.emit(DhcpOption { kind: MESSAGE_TYPE, data: &[kind.into()] }).unwrap();
        options.emit(DhcpOption { kind: CLASS, data: b"PXEClient:Arch:00000:UNDI:002001" }).unwrap();
        for &(kind, data) in more {
            options.emit(DhcpOption { kind, data }).unwrap();
        }
        options.end().unwrap();
        bytes
    }

    fn told(answer: &Answer) -> (String, Ipv4Addr, Vec<(u8, Vec<u8>)>) {
        let packet = DhcpPacket::new_checked(&answer.packet[..]).unwrap();
        assert_eq!((packet.opcode(), packet.transaction_id(), packet.server_ip()), (DhcpOpCode::Reply, 77, ADDRESS));
        let options = packet.options().map(|option| (option.kind, option.data.to_vec())).collect();
        (packet.get_boot_file().unwrap().to_owned(), packet.your_ip(), options)
    }

    const BIOS: (u8, &[u8]) = (ARCHITECTURE, &[0, 0]);
    /// Who has no address yet.
    const NOWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);

    #[test]
    fn the_answer_goes_where_the_client_listens() {
        let to = |from: SocketAddrV4, port| {
            let kind = if port == PROXY_PORT { DhcpMessageType::Request } else { DhcpMessageType::Discover };
            proxy().answer(&question(kind, KNOWN, &[BIOS]), from, port).unwrap().to
        };
        let all = SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT);
        for port in [CLIENT_PORT, PROXY_PORT] {
            let from = SocketAddrV4::new(LEASE_OF_KNOWN.address, port);
            assert_eq!((to(from, PROXY_PORT), to(from, SERVER_PORT)), (from, all));
        }
        assert_eq!((to(NOWHERE, PROXY_PORT), to(NOWHERE, SERVER_PORT)), (all, all));
    }

    #[test]
    fn each_architecture_has_its_file() {
        let file = |more: &[(u8, &[u8])]| {
            let answer = proxy().answer(&question(DhcpMessageType::Discover, KNOWN, more), NOWHERE, SERVER_PORT)?;
            Some(told(&answer).0)
        };
        assert_eq!(file(&[BIOS]).unwrap(), BIOS_IMAGE);
        for number in [7, 9] {
            assert_eq!(file(&[(ARCHITECTURE, &[0, number])]).unwrap(), UEFI_IMAGE);
        }
        assert_eq!(file(&[BIOS, (USER_CLASS, b"iPXE")]).unwrap(), IPXE_SCRIPT);
        // 32-bit UEFI, 64-bit ARM, HTTP; nothing; one byte.
        for other in [&[0, 6][..], &[0, 11], &[0, 16], &[], &[0]] {
            assert_eq!(file(&[(ARCHITECTURE, other)]), None, "{other:?}");
        }
        assert_eq!(file(&[]), None);
    }

    #[test]
    fn a_proxy_gives_no_address() {
        let answer = proxy().answer(&question(DhcpMessageType::Discover, KNOWN, &[BIOS]), NOWHERE, SERVER_PORT);
        let (_, address, options) = told(&answer.unwrap());
        assert!(address.is_unspecified());
        assert!(options.contains(&(CLASS, PXE.to_vec())) && options.contains(&(VENDOR, TAKE_THE_FILE.to_vec())));
        assert!(!options.iter().any(|(kind, _)| *kind == LEASE_TIME));
        let request = question(DhcpMessageType::Request, KNOWN, &[BIOS]);
        assert_eq!(proxy().answer(&request, NOWHERE, SERVER_PORT), None, "that is for who gives addresses");
        let (file, _, options) = told(&proxy().answer(&request, NOWHERE, PROXY_PORT).unwrap());
        assert!(file == BIOS_IMAGE && options.contains(&(MESSAGE_TYPE, vec![DhcpMessageType::Ack.into()])));
    }

    #[test]
    fn other_machines_boot_from_elsewhere() {
        for server in [proxy(), giver()] {
            for (kind, port) in [
                (DhcpMessageType::Discover, SERVER_PORT),
                (DhcpMessageType::Request, SERVER_PORT),
                (DhcpMessageType::Request, PROXY_PORT),
            ] {
                assert_eq!(server.answer(&question(kind, [2; 6], &[BIOS]), NOWHERE, port), None, "{kind:?} {port}");
            }
        }
    }

    #[test]
    fn known_machines_get_their_own_addresses() {
        let discover = question(DhcpMessageType::Discover, KNOWN, &[BIOS]);
        let (_, address, options) = told(&giver().answer(&discover, NOWHERE, SERVER_PORT).unwrap());
        assert_eq!(address, LEASE_OF_KNOWN.address);
        assert!(options.contains(&(SUBNET_MASK, vec![255, 255, 255, 0])));
        let ask = |server: Ipv4Addr, wanted: Ipv4Addr| {
            let more = [BIOS, (SERVER, &server.octets()[..]), (REQUESTED, &wanted.octets()[..])];
            giver().answer(&question(DhcpMessageType::Request, KNOWN, &more), NOWHERE, SERVER_PORT)
        };
        assert!(ask(ADDRESS, LEASE_OF_KNOWN.address).is_some());
        assert_eq!(ask(Ipv4Addr::new(10, 0, 2, 9), LEASE_OF_KNOWN.address), None, "another server's");
        assert_eq!(ask(ADDRESS, Ipv4Addr::new(10, 0, 2, 99)), None, "another address");
    }

    #[test]
    fn who_asks_is_known_by_card_or_by_an_address_from_here() {
        let (own, other) = (LEASE_OF_KNOWN.address, Ipv4Addr::new(10, 0, 2, 22));
        assert_eq!([own, other].map(|at| giver().asker_at(at) == Asker::Machine("castor")), [true, false]);
        assert_eq!(giver().asker_at(other), Asker::Stranger);
        assert_eq!(proxy().asker_at(own), Asker::Unknown);
        for server in [proxy(), giver()] {
            assert_eq!(server.asker_with(KNOWN), Asker::Machine("castor"));
            assert_eq!(server.asker_with([2; 6]), Asker::Stranger);
        }
    }

    proptest! {
        #[test]
        fn any_packet_can_be_looked_at(
            noise in prop::collection::vec(any::<u8>(), 0..500),
            places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let mut bytes = question(DhcpMessageType::Discover, KNOWN, &[BIOS, (MACHINE_ID, &[7; 17])]);
            for (place, value) in places {
                let at = place.index(bytes.len());
                bytes[at] = value;
            }
            for packet in [&noise, &bytes] {
                for server in [proxy(), giver()] {
                    for port in [SERVER_PORT, PROXY_PORT] {
                        let _ = server.answer(packet, NOWHERE, port);
                    }
                }
            }
        }
    }
}
