//! Looks at each member of the cluster all along, also at those that nobody needs now: one that has lost what it could spare
//! works as before, and stops at the next failure.

use std::time::Duration;

use anyhow::bail;
use tokio::time::timeout;

use super::client::{LIMIT, Member};

/// How often each member is looked at.
const WATCH: Duration = Duration::from_secs(5);

/// Looks at each member again and again, and says which do not answer whenever that changes.
pub(super) async fn watch(members: Vec<Member>) {
    let mut before = vec![None; members.len()];
    loop {
        let looks: Vec<_> = members
            .iter()
            .cloned()
            .map(|mut member| {
                tokio::spawn(async move {
                    let url = member.url.clone();
                    let answer = timeout(LIMIT, member.number()).await;
                    answer
                        .unwrap_or_else(|_| bail!("the etcd at {url} does not answer"))
                        .err()
                        .map(|why| format!("{why:#}"))
                })
            })
            .collect();
        let mut now = Vec::new();
        for look in looks {
            now.push(look.await.unwrap_or_else(|panicked| Some(panicked.to_string())));
        }
        if let Some(news) = news(&before, &now) {
            eprintln!("arbiter: {news}");
        }
        before = now;
        tokio::time::sleep(WATCH).await;
    }
}

/// What to say of members that did not answer for these reasons, if it was other ones before.
fn news(before: &[Option<String>], now: &[Option<String>]) -> Option<String> {
    let silent = |members: &[Option<String>]| members.iter().map(Option::is_some).collect::<Vec<_>>();
    if silent(before) == silent(now) {
        return None;
    }
    let (all, troubles) = (now.len(), now.iter().flatten().map(String::as_str).collect::<Vec<_>>());
    let (left, needed) = (all - troubles.len(), all / 2 + 1);
    Some(match left {
        left if left == all => format!("all {all} members of the etcd cluster answer"),
        left if left < needed => {
            format!("{left} of {all} members answer, too few for any term: {}", troubles.join("; "))
        }
        left => format!(
            "{left} of {all} members answer, and {needed} are needed: {} more may fail; {}",
            left - needed,
            troubles.join("; ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_fall_silent_and_speak_again_are_told_of_once() {
        let why = |silent: [bool; 3]| silent.map(|silent| silent.then(|| "it is dead".to_owned()));
        let said = |before, now| news(&why(before), &why(now));
        assert_eq!(said([false; 3], [false; 3]), None);
        let one = said([false; 3], [false, true, false]).unwrap();
        assert_eq!(one, "2 of 3 members answer, and 2 are needed: 0 more may fail; it is dead");
        assert_eq!(said([false, true, false], [false, true, false]), None);
        // Another one, as many as before.
        assert!(said([false, true, false], [true, false, false]).is_some());
        let two = said([false, true, false], [true, true, false]).unwrap();
        assert_eq!(two, "1 of 3 members answer, too few for any term: it is dead; it is dead");
        assert_eq!(said([true, true, false], [false; 3]).unwrap(), "all 3 members of the etcd cluster answer");
    }
}
