//! Which role a machine has, derived from what is known about all of them.

use serde::{Deserialize, Serialize};

use super::monitor::Claim;

/// A machine's role as `rig.json` states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It runs the guest for the clients.
    Primary,
    /// It follows the primary.
    Backup,
    /// It is on the way to either.
    Joining,
    /// It does not run, has halted, or was replaced without knowing it: its output stays inside.
    Dead,
}

impl Role {
    /// The word in `rig.json`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
            Self::Joining => "joining",
            Self::Dead => "dead",
        }
    }
}

/// What is known about one machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its process runs.
    pub alive: bool,
    /// What it said last, if it has said anything.
    pub claim: Option<Claim>,
    /// The term that it said it is in.
    pub term: u64,
    /// What it said last about protection.
    pub protected: bool,
    /// It has said nothing for so long that it must have stopped, unless its emulator is starved.
    pub silent: bool,
}

/// The roles of all machines, and whether the guest is protected.
pub fn derive(facts: &[Facts]) -> (Vec<Role>, bool) {
    let roles: Vec<_> = (0..facts.len()).map(|machine| role(facts, machine)).collect();
    let has_backup = roles.contains(&Role::Backup);
    let primary_says_so = roles.iter().zip(facts).any(|(role, facts)| *role == Role::Primary && facts.protected);
    (roles, has_backup && primary_says_so)
}

fn role(facts: &[Facts], machine: usize) -> Role {
    let own = facts[machine];
    if !own.alive {
        return Role::Dead;
    }
    let speaks_as_primary = |other: &Facts| other.alive && !other.silent && other.claim == Some(Claim::Primary);
    let replaces = |other: &Facts| speaks_as_primary(other) && (own.silent || other.term > own.term);
    let replaced = facts.iter().enumerate().any(|(index, other)| index != machine && replaces(other));
    match own.claim {
        // A machine that hangs or is cut off cannot know; that its twin took over proves it.
        Some(Claim::Primary) if replaced => Role::Dead,
        Some(Claim::Primary) => Role::Primary,
        Some(Claim::Backup) => Role::Backup,
        Some(Claim::Joining) | None => Role::Joining,
        Some(Claim::Halted) => Role::Dead,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(claim: Claim, protected: bool) -> Facts {
        Facts { alive: true, claim: Some(claim), protected, ..Facts::default() }
    }

    #[test]
    fn roles_follow_claims_of_the_living() {
        let starting = Facts { alive: true, ..Facts::default() };
        let dead = Facts { alive: false, ..facts(Claim::Backup, true) };
        assert_eq!(derive(&[facts(Claim::Primary, false), starting]), (vec![Role::Primary, Role::Joining], false));
        assert_eq!(derive(&[facts(Claim::Halted, false), dead]), (vec![Role::Dead, Role::Dead], false));
        assert_eq!(derive(&[facts(Claim::Primary, false)]), (vec![Role::Primary], false));
    }

    #[test]
    fn protection_takes_a_primary_that_says_so_and_a_living_backup() {
        let primary = facts(Claim::Primary, true);
        let backup = facts(Claim::Backup, false);
        assert!(derive(&[primary, backup]).1);
        assert!(derive(&[backup, primary]).1);
        assert!(!derive(&[facts(Claim::Primary, false), backup]).1);
        assert!(!derive(&[primary, Facts { alive: false, ..backup }]).1);
        assert!(!derive(&[primary, facts(Claim::Joining, true)]).1);
        assert!(!derive(&[Facts { alive: false, ..primary }, facts(Claim::Backup, true)]).1);
        assert!(!derive(&[primary]).1);
    }

    #[test]
    fn a_silent_primary_is_dead_once_its_twin_has_taken_over() {
        let hung = Facts { silent: true, ..facts(Claim::Primary, true) };
        assert_eq!(derive(&[hung, facts(Claim::Backup, false)]).0, [Role::Primary, Role::Backup]);
        assert_eq!(derive(&[hung, facts(Claim::Primary, false)]).0, [Role::Dead, Role::Primary]);
        assert_eq!(derive(&[hung, hung]).0, [Role::Primary, Role::Primary]);
    }

    #[test]
    fn a_primary_that_is_cut_off_is_dead_once_its_twin_is_in_a_newer_term() {
        let old = Facts { term: 1, ..facts(Claim::Primary, false) };
        let new = Facts { term: 2, ..old };
        assert_eq!(derive(&[old, new]).0, [Role::Dead, Role::Primary]);
        assert_eq!(derive(&[old, old]).0, [Role::Primary, Role::Primary]);
        assert_eq!(derive(&[old, Facts { term: 2, ..facts(Claim::Joining, false) }]).0, [Role::Primary, Role::Joining]);
        assert_eq!(derive(&[old, Facts { alive: false, ..new }]).0, [Role::Primary, Role::Dead]);
    }
}
