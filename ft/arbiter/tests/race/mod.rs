//! Many who ask for one term at once.

use std::collections::HashSet;

use pollux_ft::arbiter::Answer;

/// Of nodes 1 to 8 one wins, and all hear of the same one, if each asks as `ask` does.
pub fn race(term: u64, ask: impl Fn(u64) -> Answer + Sync) {
    let answers: Vec<_> = std::thread::scope(|scope| {
        let ask = &ask;
        let threads: Vec<_> = (1..=8).map(|node| scope.spawn(move || (node, ask(node)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let winner = |(node, answer): &(u64, Answer)| match answer {
        Answer::Granted => *node,
        Answer::Taken { by } => by.node.unwrap().0,
    };
    assert_eq!(answers.iter().map(winner).collect::<HashSet<_>>().len(), 1, "term {term}: {answers:?}");
    assert_eq!(answers.iter().filter(|(_, answer)| *answer == Answer::Granted).count(), 1, "term {term}");
}
