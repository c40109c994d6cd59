//! Every input in the corpus, once: each target survives what it has survived before.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pollux_fuzz::TARGETS;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

#[test]
fn every_target_survives_its_corpus() {
    for target in &TARGETS {
        let inputs =
            fs::read_dir(corpus().join(target.name)).unwrap_or_else(|error| panic!("{}: {error}", target.name));
        let mut seen = 0;
        for input in inputs {
            let path = input.unwrap().path();
            println!("{}", path.display());
            (target.run)(&fs::read(&path).unwrap());
            seen += 1;
        }
        assert!(seen > 0, "{} has no corpus", target.name);
    }
}

#[test]
fn no_corpus_is_left_over() {
    let folders: BTreeSet<_> =
        fs::read_dir(corpus()).unwrap().map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(folders, TARGETS.iter().map(|target| target.name.to_owned()).collect());
}

/// Short inputs, and those made of a single byte, for all targets.
#[test]
fn trivial_inputs_are_survived() {
    for target in &TARGETS {
        for length in [0, 1, 2, 3, 7, 64, 1000] {
            for byte in [0, 1, b' ', b'0', 0x7F, 0x80, 0xFF] {
                (target.run)(&vec![byte; length]);
            }
        }
    }
}
