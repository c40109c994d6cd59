use proptest::prelude::*;

use super::*;

fn any_request() -> impl Strategy<Value = (DiskOperation, u64, u64)> {
    let operation = prop_oneof![
        4 => Just(DiskOperation::Read),
        4 => Just(DiskOperation::Write),
        1 => Just(DiskOperation::Zero),
        1 => Just(DiskOperation::Flush),
    ];
    (operation, 0u64..8, 1u64..4)
}

/// What is done with each byte of a disk, in which order: by a number for each request that touches it.
#[derive(Default, PartialEq, Eq, Debug)]
struct Touched([Vec<(u64, DiskOperation)>; 12]);

impl Touched {
    fn by(&mut self, request: &DiskRequest) {
        let all = request.operation == DiskOperation::Flush;
        let touches = |at: u64| all || (request.start..request.start + request.len).contains(&at);
        for (_, touched) in (0u64..).zip(&mut self.0).filter(|(at, _)| touches(*at)) {
            touched.push((request.id, request.operation));
        }
    }

    /// Without the order of reads between two writes, of which nobody sees anything.
    fn settled(mut self) -> Self {
        for touched in &mut self.0 {
            for reads in touched.chunk_by_mut(|a, b| a.1 == DiskOperation::Read && b.1 == DiskOperation::Read) {
                reads.sort_unstable_by_key(|(id, _)| *id);
            }
        }
        self
    }
}

proptest! {
    /// However a disk takes its time: each request is begun once and ends once, those that overlap in the guest's order,
    /// and a twin with a disk of another mind may apply the same ends.
    #[test]
    fn requests_end_once_and_in_order(
        requests in prop::collection::vec(any_request(), 1..20), choices in prop::collection::vec(any::<usize>(), 200)
    ) {
        let rules = Config::default();
        let mut twins = [DiskRequests::default(), DiskRequests::default()];
        let (mut expected, mut begun) = (Touched::default(), [Touched::default(), Touched::default()]);
        let mut at_work = [Vec::new(), Vec::new()];
        let mut told = Vec::new();
        for (id, &(operation, start, len)) in (0u64..).zip(&requests) {
            let request = DiskRequest { id, operation, start, len, durable: false };
            expected.by(&request);
            twins.iter_mut().for_each(|twin| twin.add(request));
        }
        let mut log = VecDeque::new();
        for choice in choices {
            let side = choice % 2;
            while let Some(request) = twins[side].begin(&rules) {
                begun[side].by(&request);
                at_work[side].push(request.id);
            }
            match (choice / 2 % 3, side) {
                (0, _) if !at_work[side].is_empty() => {
                    let id = at_work[side].swap_remove(choice / 6 % at_work[side].len());
                    twins[side].ended(DiskEnd { id, status: DiskStatus::Done });
                }
                (1, 0) if twins[0].is_due(false) => {
                    let ends = twins[0].due(false, &rules);
                    prop_assert_eq!(disk::decode(&disk::encode(&ends)), Ok(ends.clone()));
                    twins[0].applied(&ends);
                    told.extend(ends.iter().map(|end| end.id));
                    log.push_back(ends);
                }
                (1, 1) => {
                    if let Some(ends) = log.front() {
                        match twins[1].ready(ends, &rules) {
                            Ok(()) => {
                                twins[1].applied(ends);
                                log.pop_front();
                            }
                            Err(error) => prop_assert_eq!(error, NotReady::Busy),
                        }
                    }
                }
                _ => {}
            }
        }
        // All that is left, to the end.
        while !(twins[0].is_empty() && twins[1].is_empty()) {
            for side in 0..2 {
                while let Some(request) = twins[side].begin(&rules) {
                    begun[side].by(&request);
                    at_work[side].push(request.id);
                }
                for id in at_work[side].drain(..) {
                    twins[side].ended(DiskEnd { id, status: DiskStatus::Done });
                }
            }
            if twins[0].is_due(false) {
                let ends = twins[0].due(false, &rules);
                twins[0].applied(&ends);
                told.extend(ends.iter().map(|end| end.id));
                log.push_back(ends);
            }
            while let Some(ends) = log.front() && twins[1].ready(ends, &rules).is_ok() {
                twins[1].applied(ends);
                log.pop_front();
            }
        }
        told.sort_unstable();
        prop_assert_eq!(told, (0..requests.len() as u64).collect::<Vec<_>>());
        let expected = expected.settled();
        for touched in begun {
            prop_assert_eq!(&touched.settled(), &expected);
        }
    }
}

const WRITE: DiskRequest = DiskRequest { id: 3, operation: DiskOperation::Write, start: 0, len: 512, durable: false };

#[test]
fn requests_that_overlap_wait_for_each_other_if_one_of_them_writes() {
    use DiskOperation::{Flush, Read, Write};
    let cases = [
        (Read, 0, Read, 0, false),
        (Write, 0, Read, 511, true),
        (Read, 511, Write, 0, true),
        (Write, 0, Write, 512, false),
        (Write, 512, Write, 0, false),
        (Write, 0, Read, 512, false),
        (Read, 0, Write, 512, false),
        (Flush, 0, Read, 4096, true),
        (Read, 4096, Flush, 0, true),
    ];
    for (first, at, second, start, waits) in cases {
        let request = |id, operation, start| DiskRequest { id, operation, start, ..WRITE };
        let (mut requests, rules) = (DiskRequests::default(), Config::default());
        assert!(requests.is_empty());
        requests.add(request(1, first, at));
        requests.add(request(2, second, start));
        assert_eq!((requests.len(), requests.is_empty()), (2, false));
        assert_eq!(requests.begin(&rules).map(|request| request.id), Some(1));
        assert_eq!(requests.begin(&rules).is_none(), waits, "{first:?} {at}, {second:?} {start}");
        // That it ended does not count: that the guest has seen it does.
        let end = DiskEnd { id: 1, status: DiskStatus::Done };
        requests.ended(end);
        assert!(requests.begin(&rules).is_none());
        assert!(!requests.has_failed());
        requests.applied(&[end]);
        assert_eq!((requests.begin(&rules).is_some(), requests.len()), (waits, 1));
    }
}

#[test]
fn an_error_waits_until_it_may_be_told() {
    let (mut requests, rules) = (DiskRequests::default(), Config::default());
    requests.add(WRITE);
    requests.add(DiskRequest { id: 4, start: 512, ..WRITE });
    assert_eq!(requests.begin(&rules), Some(WRITE));
    requests.ended(DiskEnd { id: 4, status: DiskStatus::Done });
    assert!(!requests.is_due(true), "it was not begun");
    assert!(requests.begin(&rules).is_some() && requests.begin(&rules).is_none());
    requests.ended(DiskEnd { id: 3, status: DiskStatus::Failed });
    assert!(requests.has_failed() && requests.is_due(true) && !requests.is_due(false));
    let failed = [DiskEnd { id: 3, status: DiskStatus::Failed }];
    assert_eq!((requests.due(false, &rules), &requests.due(true, &rules)[..]), (Vec::new(), &failed[..]));
    requests.ended(DiskEnd { id: 4, status: DiskStatus::Done });
    assert_eq!((requests.due(false, &rules).len(), requests.due(true, &rules).len()), (1, 2));
}

#[test]
fn a_backup_waits_for_its_disk_and_ends_by_its_errors() {
    let (mut requests, rules) = (DiskRequests::default(), Config::default());
    requests.add(WRITE);
    requests.begin(&rules);
    let ends = |id, status| [DiskEnd { id, status }];
    let ready = |requests: &DiskRequests, id, status| requests.ready(&ends(id, status), &rules);
    assert_eq!(ready(&requests, 3, DiskStatus::Done), Err(NotReady::Busy));
    assert_eq!(ready(&requests, 3, DiskStatus::Failed), Err(NotReady::Busy), "it must not be at work any more");
    assert_eq!(ready(&requests, 4, DiskStatus::Done), Err(NotReady::Unknown(4)));
    requests.ended(DiskEnd { id: 3, status: DiskStatus::Failed });
    assert_eq!(ready(&requests, 3, DiskStatus::Done), Err(NotReady::Failed(3)));
    assert_eq!(ready(&requests, 3, DiskStatus::Failed), Ok(()));
}
