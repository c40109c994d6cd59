//! This machine towards the client network: frames for the guest and for itself on their way in, its own on their way out,
//! and the answers to whoever asks it.

use pollux_driver::Driver;
use pollux_nic::FrameSink;

use super::arbiter::Arbiter;
use super::json::Json;
use super::machine::Machine;
use super::report::Metrics;
use super::service::Service;
use super::service::http::{Page, Request, Response};
use super::stack::FRAMES_A_TURN;
use super::station::{Ears, Station};
use crate::guest::Guest;
use crate::host::clock;
use crate::host::interrupts::Fired;

impl Machine {
    /// Takes in what came from the client network, for the guest and for this machine.
    pub(super) fn poll_client(&mut self, fired: Fired, live: bool) {
        let mut ears =
            Ears { arbiter: self.arbiter.as_mut().and_then(Arbiter::station), service: self.service.as_mut() };
        if let Some((card, route)) = &mut self.own_card {
            if route.fired(fired) {
                card.interrupt_cause();
                route.rearm();
            }
            // Also while nobody listens, lest the card's ring fills up. What comes faster than it is looked at waits for later.
            for _ in 0..FRAMES_A_TURN {
                if card.receive(|frame| ears.offer(frame)).is_none() {
                    break;
                }
            }
            card.flush();
            ears = Ears { arbiter: None, service: None };
        }
        if let Some(client) = &mut self.client {
            client.interrupted(fired);
            client.poll(live, &mut ears);
        }
    }

    /// Sends what this machine itself has to say on the client network. A frame that a card does not take is lost, as on any
    /// network, and counted.
    pub(super) fn send_for_machine(&mut self) {
        let (card, client) = (&mut self.own_card, &mut self.client);
        let lost = &mut self.figures.own_frames_lost;
        let mut send = |frame: &[u8]| {
            let taken = match (&mut *card, &mut *client) {
                (Some((card, _)), _) => card.send(frame).is_ok(),
                (None, Some(client)) => client.nic().machine_transmit(frame).is_ok(),
                (None, None) => false,
            };
            *lost += u64::from(!taken);
        };
        let mut sent = 0;
        let mut station = self.arbiter.as_mut().and_then(Arbiter::station);
        while let Some(frame) = station.as_mut().and_then(|station| Station::next_frame(station)) {
            send(&frame);
            sent += 1;
        }
        while let Some(frame) = self.service.as_mut().and_then(Service::next_frame) {
            send(&frame);
            sent += 1;
        }
        if sent == 0 {
            return;
        }
        match (card, client) {
            (Some((card, _)), _) => card.flush(),
            (None, Some(client)) => client.nic().flush(),
            (None, None) => {}
        }
    }

    /// Lets whoever asks on the client network have an answer.
    pub(super) fn poll_service(&mut self, driver: &Driver<Guest>) {
        let Some(mut service) = self.service.take() else { return };
        let refused = service.refused();
        service.poll(self.now, &clock::unix_time, &mut |request| self.answer(request, driver, &refused));
        self.service = Some(service);
    }

    fn answer(&mut self, request: &Request, driver: &Driver<Guest>, refused: &[(&'static str, u64)]) -> Response {
        if let Some(response) = while_ending(self.ending.as_deref()) {
            return response;
        }
        match request.page {
            Page::Status => {
                let mut json = Json::line("status");
                self.fill(&mut json, driver, refused);
                Response::json(json.finish())
            }
            Page::Metrics => {
                let mut metrics = Metrics::default();
                self.fill(&mut metrics, driver, refused);
                Response::metrics(metrics.finish())
            }
            Page::Health => match self.health(driver) {
                Ok(what) => Response::text(200, what),
                Err(why) => Response::text(503, why),
            },
        }
    }
}

/// What all pages say as long as the guest has ended and the twin may not know: whoever reads that a machine has halted may
/// switch it off, and with it its last words.
fn while_ending(ending: Option<&str>) -> Option<Response> {
    ending.map(|_| Response::text(503, "the guest has ended; its twin is being told"))
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::*;

    #[test]
    fn who_asks_while_the_twin_is_told_does_not_hear_that_the_machine_has_halted() {
        assert_eq!(while_ending(None), None);
        let response = while_ending(Some("it was powered off")).unwrap();
        let text = String::from_utf8(response.encode(false)).unwrap();
        assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("its twin is being told"), "{text}");
        assert!(!text.contains("halted"), "{text}");
    }
}
