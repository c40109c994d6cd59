use std::fs;
use std::io::Write;

use tempfile::TempDir;

use super::*;
use crate::secret::private;

/// The file of docs/two-servers.md, with small changes.
const PAIR: &str = r#"pair = "web"
key = "pair.key"
arbiter = "10.1.0.3"
options = ["on-halt=reset"]

[guest]
kernel = "vmlinuz"
append = "console=ttyS0 quiet"
memory = "512M"

[[machine]]
name = "castor"
mac = "52:54:00:10:00:01"
client-nic = "1:0.0"
log-nic = "2:0.0"
log-address = "10.1.0.1/24"
machine-address = "10.0.2.21/24"

[[machine]]
name = "pollux"
mac = "52:54:00:10:00:02"
client-nic = "1:0.0"
log-nic = "2:0.0"
log-address = "10.1.0.2/24"
machine-address = "10.0.2.22/24"
options = ["vectors=sse"]
"#;

/// A place with that file, changed, and what it names.
fn place(from: &str, to: &str) -> (TempDir, PathBuf) {
    assert!(from.is_empty() || PAIR.contains(from), "{from}");
    let directory = tempfile::tempdir().unwrap();
    for (name, len) in [("pair.key", 32), ("short.key", 31)] {
        let file = private(fs::OpenOptions::new().create(true), &directory.path().join(name));
        file.unwrap().write_all(&vec![7; len]).unwrap();
    }
    fs::write(directory.path().join("vmlinuz"), b"\x7fELF").unwrap();
    let path = directory.path().join("pair.toml");
    fs::write(&path, PAIR.replacen(from, to, 1)).unwrap();
    (directory, path)
}

fn refusal(from: &str, to: &str) -> String {
    let (_directory, path) = place(from, to);
    format!("{:#}", Pair::read(&path).unwrap_err())
}

#[test]
fn a_pair_is_two_command_lines() {
    let (_directory, path) = place("", "");
    let pair = Pair::read(&path).unwrap();
    let words = |index: usize| pair.words(&pair.machines[index], &[("guest-memory", "512M")]).unwrap().join(" ");
    assert_eq!(
        words(0),
        "name=castor pair=web client-nic=1:0.0 log-nic=2:0.0 log-address=10.1.0.1/24 arbiter=10.1.0.3 \
         machine-address=10.0.2.21/24 log-peer=10.1.0.2 machine-peer=10.0.2.22 on-halt=reset role=auto guest-memory=512M"
    );
    assert!(words(1).contains("log-peer=10.1.0.1 machine-peer=10.0.2.21 on-halt=reset vectors=sse role=auto"));
    assert_eq!(pair.secrets.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["key"]);
    assert_eq!(pair.machines[1].client.lease.unwrap().address, std::net::Ipv4Addr::new(10, 0, 2, 22));
    // What only the guest's build knows is looked at, too.
    let error = pair.words(&pair.machines[0], &[("guest-memory", "7M")]).unwrap_err().to_string();
    assert!(error.contains("pair.toml:11: castor: option 'guest-memory'"), "{error}");
}

#[test]
fn each_machine_gets_the_keys_and_a_seed_of_its_own() {
    let (_directory, path) = place("", "");
    let pair = Pair::read(&path).unwrap();
    let [castor, pollux] = [(); 2].map(|()| pair.modules().unwrap());
    assert_eq!(castor.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["key", "seed"]);
    assert!(castor[0] == pollux[0] && castor[1] != pollux[1]);
}

#[test]
fn a_desk_that_lends_addresses_is_in_their_network() {
    let refused = |from: &str, to: &str, desk: [u8; 4]| {
        let (_directory, path) = place(from, to);
        Pair::read(&path).unwrap().check_desk(desk.into()).map_err(|error| error.to_string())
    };
    assert_eq!(refused("", "", [10, 0, 2, 9]), Ok(()));
    let error = refused("", "", [10, 0, 3, 9]).unwrap_err();
    assert!(error.contains("pair.toml:17: castor: the desk's address 10.0.3.9 is not in"), "{error}");
    let error = refused("", "", [10, 0, 2, 22]).unwrap_err();
    assert!(error.contains("pair.toml:25: pollux: 10.0.2.22 is the address of the desk"), "{error}");
    let none =
        PAIR.replace("machine-address = \"10.0.2.21/24\"\n", "").replace("machine-address = \"10.0.2.22/24\"\n", "");
    let error =
        refused(PAIR, &none.replace("arbiter = \"10.1.0.3\"", "arbiter = \"none\""), [10, 0, 2, 9]).unwrap_err();
    assert!(error.contains("pair.toml:11: castor: --dhcp gives"), "{error}");
}

#[test]
fn what_is_wrong_is_named_by_line() {
    for (from, to, line, reason) in [
        ("name = \"pollux\"", "name = \"castor\"", 20, "the name castor is there twice (line 12)"),
        ("name = \"pollux\"", "name = \"../x\"", 20, "a machine's name is"),
        ("00:02\"", "00:01\"", 21, "the MAC address 52:54:00:10:00:01 is there twice (line 13)"),
        ("52:54:00:10:00:02", "52:54:00:10:02", 21, "no MAC address"),
        ("52:54:00:10:00:02", "53:54:00:10:00:02", 21, "no MAC address"),
        ("52:54:00:10:00:02", "52:54:00:12:34:56", 21, "the guest's own MAC address"),
        ("10.1.0.2/24", "10.1.0.1/24", 24, "the address 10.1.0.1/24 is there twice (line 16)"),
        ("10.1.0.2/24", "10.1.1.2/24", 24, "10.1.1.2/24 is not in the log network of its twin, 10.1.0.1/24 (line 16)"),
        ("10.1.0.2/24", "10.1.0.2", 24, "an address with prefix length"),
        ("10.0.2.22/24", "10.9.2.22/24", 25, "is not in the client network of its twin"),
        ("machine-address = \"10.0.2.22/24\"\n", "", 17, "the other one has none"),
        ("key = \"pair.key\"\n", "", 1, "the pair has no key"),
        ("key = \"pair.key\"", "key = \"pair.key\"\ninsecure = true", 2, "contradict"),
        ("pair.key", "none.key", 2, "cannot read"),
        ("pair.key", "short.key", 2, "is no key of 32 bytes"),
        ("vmlinuz", "none", 7, "cannot read"),
        ("kernel = \"vmlinuz\"", "kernel = \".\"", 7, "is no file"),
        ("kernel = \"vmlinuz\"", "initrd = \"vmlinuz\"", 7, "there is none"),
        ("kernel = \"vmlinuz\"", "kernel = \"vmlinuz\"\nimage = \"counter\"", 8, "contradict"),
        ("memory = \"512M\"", "memory = \"7M\"", 9, "8M to 3G"),
        ("memory = \"512M\"", "disk = \"nvme:1G\"", 9, "each machine's own"),
        ("memory = \"512M\"", "memroy = \"512M\"", 9, "unknown field `memroy`"),
        ("memory = \"512M\"", "memory = 512", 9, "invalid type"),
        ("memory = \"512M\"", "memory = \"512M", 9, "invalid"),
        ("pair = \"web\"", "pair = \"two words\"", 1, "option 'pair=two words': 1 to 32"),
        ("arbiter = \"10.1.0.3\"\n", "", 1, "missing field `arbiter`"),
        ("10.1.0.3", "10.7.0.3", 3, "option 'arbiter': 10.7.0.3"),
        ("on-halt=reset", "on-halt=perhaps", 4, "option 'on-halt=perhaps': one of stay, reset"),
        ("on-halt=reset", "frobnicate=1", 4, "option 'frobnicate' is unknown"),
        ("on-halt=reset", "name=helen", 4, "follows from what stands in line 12"),
        ("on-halt=reset", "guest-args=it's", 4, "GRUB cannot pass '"),
        ("on-halt=reset", "castor:on-halt=reset", 4, "no machine castor here"),
        ("vectors=sse", "vectors=mmx", 26, "pollux: option 'vectors=mmx': one of"),
        ("vectors=sse", "heartbeat=1s", 26, "options 'heartbeat' (1000000 us) and 'suspect'"),
        ("log-nic = \"2:0.0\"", "log-nic = \"1:0.0\"", 14, "name the same device"),
        ("[[machine]]\nname = \"pollux\"", "[machine2]\nname = \"pollux\"", 19, "unknown field `machine2`"),
    ] {
        let error = refusal(from, to);
        assert!(error.contains(&format!("pair.toml:{line}: ")) && error.contains(reason), "{from} → {to}: {error}");
    }
    let third = format!("{PAIR}\n[[machine]]\n{}", PAIR.rsplit("[[machine]]").next().unwrap());
    let (directory, path) = place("", "");
    fs::write(&path, third).unwrap();
    let error = Pair::read(&path).unwrap_err().to_string();
    assert!(error.contains("pair.toml:28: a pair is two [[machine]], and here are 3"), "{error}");
    drop(directory);
}

#[test]
fn a_pair_may_be_insecure_by_its_own_word() {
    let (_directory, path) = place("key = \"pair.key\"\narbiter = \"10.1.0.3\"", "insecure = true\narbiter = \"none\"");
    let pair = Pair::read(&path).unwrap();
    assert!(pair.secrets.is_empty() && pair.words(&pair.machines[0], &[]).unwrap().contains(&"insecure=on".to_owned()));
    let error = refusal("key = \"pair.key\"", "insecure = true");
    assert!(error.contains("pair.toml:3: castor: option 'arbiter'"), "{error}");
}
