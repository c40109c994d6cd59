use super::*;

const SMALL: Bounds = Bounds { terms: 2, inputs: 1, ..Bounds::INPUTS };

#[test]
fn the_rules_hold_within_small_bounds() {
    let outcome = check(SMALL, None);
    assert_eq!(outcome.broken, []);
    assert!(outcome.states > 10_000, "{}", outcome.states);
}

/// Both machines come up without a guest, and one of them comes back once more.
#[test]
fn one_guest_is_created_at_a_time() {
    let outcome = check(Bounds { restarts: 1, ..Bounds::COLD }, None);
    assert_eq!(outcome.broken, []);
    assert!(outcome.happened.contains(&"machines that start by themselves create a guest"), "{:?}", outcome.happened);
    assert!(outcome.states > 1000, "{}", outcome.states);
}

#[test]
fn what_the_bounds_exclude_is_not_said_to_happen() {
    let happened = check(SMALL, None).happened;
    assert!(happened.contains(&"a backup goes live in a term of its own"), "{happened:?}");
    // For that a second session is needed.
    assert!(!happened.contains(&"a guest that was taken over is protected again"), "{happened:?}");
}

#[test]
fn each_broken_rule_does_harm() {
    for rule in Broken::ALL {
        let outcome = check(rule.bounds(), Some(rule));
        let (property, way) = outcome.broken.first().unwrap_or_else(|| panic!("{rule:?} does no harm"));
        assert!(way.len() > 3, "{rule:?}: {property} after {way:?}");
    }
}

#[test]
fn each_broken_rule_of_cold_starts_makes_two_guests() {
    for rule in [Broken::CreatesUnasked, Broken::GuestUnheard] {
        let outcome = check(rule.bounds(), Some(rule));
        assert!(
            outcome.broken.iter().any(|(property, _)| property.contains("guest") || property.contains("live")),
            "{rule:?}"
        );
    }
}

#[test]
fn the_same_check_gives_the_same_way() {
    let ways = [(); 2].map(|()| check(SMALL, Some(Broken::StreamIsProof)).broken);
    assert_eq!(ways[0], ways[1]);
    assert_eq!(ways[0][0].0, "at most one machine is live");
}
