//! Every check can fail: each gets histories that it must object to, by its name.

mod audit;
pub(crate) mod worlds;

use super::*;

/// What was found in histories that break the rule of `check`, and no rule that is checked before it.
fn objections(check: Check) -> Vec<Option<Violation>> {
    match check {
        Check::OutputRule => audit::output_rule(),
        Check::AloneRule => audit::alone_rule(),
        Check::OneLive => audit::one_live(),
        Check::OneLife => audit::one_life(),
        Check::OneTermOneNode => audit::one_term_one_node(),
        Check::Successor => audit::successor(),
        Check::NothingLost => audit::nothing_lost(),
        Check::Duplicates => audit::duplicates(),
        Check::GuestTime => audit::guest_time(),
        Check::ClientHistory => audit::client_history(),
        Check::ReplicasEqual => audit::replicas_equal(),
        Check::Drained => audit::drained(),
        Check::NeededTakeover => [worlds::needed_takeover(), audit::needed_takeover()].concat(),
        Check::GivesWay => worlds::gives_way(),
        Check::SignOfLife => worlds::sign_of_life(),
        Check::Genuine => worlds::genuine(),
        Check::Disk => audit::disk(),
        Check::Horizon => audit::horizon(),
        Check::Lag => audit::lag(),
        Check::Memory => worlds::memory(),
        Check::PowerOff => audit::power_off(),
        Check::Survival => worlds::survival(),
        Check::Service => worlds::service(),
        Check::Protection => worlds::protection(),
        Check::FlipFound => worlds::flip_found(),
        Check::NoPanic => worlds::no_panic(),
        Check::Ends => worlds::ends(),
    }
}

#[test]
fn every_check_objects_to_what_breaks_its_rule() {
    for check in Check::ALL {
        let found = objections(check);
        assert!(!found.is_empty(), "{check} has no bad history");
        for (number, violation) in found.into_iter().enumerate() {
            assert_eq!(violation.as_ref().map(|found| found.check), Some(check), "{check} {number}: {violation:?}");
        }
    }
}

#[test]
fn names_are_different() {
    let names: std::collections::BTreeSet<_> = Check::ALL.iter().map(|check| check.name()).collect();
    assert_eq!(names.len(), Check::ALL.len());
}
