//! One session's state machine (RFC 5880, 6.8), asynchronous mode, active role.
//!
//! No clock and no I/O: times are nanoseconds of any clock that never steps back, random numbers
//! are the caller's, and the packets in [`Actions`] are the caller's to send.

use super::packet::{Diagnostic, Packet, Reject, State};

/// Microseconds between packets at least while the session is not up (6.8.3).
const SLOW: u32 = 1_000_000;

/// What is negotiated with the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Microseconds between the packets to send, at least; not 0.
    pub desired_min_tx: u32,
    /// Microseconds between packets that can be received; 0: the peer must send none.
    pub required_min_rx: u32,
    /// How many packets the peer may miss; not 0.
    pub multiplier: u8,
}

/// A change that matters outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Both ends hear each other.
    Up,
    /// The session was up and is no more; `ended` where the peer took it down on purpose, which says
    /// nothing of the path (RFC 5882, 3.2).
    Down { diagnostic: Diagnostic, ended: bool },
}

/// What came of an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Actions {
    /// To be sent now.
    pub send: Option<Packet>,
    pub event: Option<Event>,
}

/// A poll sequence (6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Poll {
    Idle,
    Running,
    /// Something changed meanwhile: the answer may be to what was sent before.
    Again,
}

/// A session, with the variables of 6.8.1.
#[derive(Clone, Debug)]
pub struct Session {
    config: Config,
    state: State,
    diagnostic: Diagnostic,
    discriminator: u32,
    /// As announced; the configured one while up, else 1 s or more.
    desired_min_tx: u32,
    /// What transmission goes by: the announced one, but not more before the peer agreed (6.8.3).
    tx_in_use: u32,
    /// What detection goes by: the announced one, but not less before the peer agreed (6.8.3).
    rx_in_use: u32,
    poll: Poll,
    remote: Remote,
    /// When the last packet was accepted; `None` while the peer is not heard.
    heard: Option<u64>,
    /// When the last packet was sent, other than answers to polls.
    sent: Option<u64>,
    /// Of 65536: where in the range of the jitter the next packet lies.
    jitter: u16,
}

/// What the peer last said of itself.
#[derive(Clone, Copy, Debug)]
struct Remote {
    state: State,
    /// 0: unknown.
    discriminator: u32,
    desired_min_tx: u32,
    required_min_rx: u32,
    multiplier: u8,
    demand: bool,
}

impl Remote {
    /// A peer not heard (6.8.1).
    const UNKNOWN: Self = Self {
        state: State::Down,
        discriminator: 0,
        desired_min_tx: 0,
        required_min_rx: 1,
        multiplier: 0,
        demand: false,
    };

    fn of(packet: &Packet) -> Self {
        Self {
            state: packet.state,
            discriminator: packet.my_discriminator,
            desired_min_tx: packet.desired_min_tx,
            required_min_rx: packet.required_min_rx,
            multiplier: packet.multiplier,
            demand: packet.demand,
        }
    }
}

impl Session {
    /// A session that is down and wants to send at once. `discriminator` is random, not 0, and
    /// unique among the sessions of this host.
    #[must_use]
    pub fn new(config: Config, discriminator: u32) -> Self {
        let desired_min_tx = config.desired_min_tx.max(SLOW);
        Self {
            config,
            state: State::Down,
            diagnostic: Diagnostic::None,
            discriminator,
            desired_min_tx,
            tx_in_use: desired_min_tx,
            rx_in_use: config.required_min_rx,
            poll: Poll::Idle,
            remote: Remote::UNKNOWN,
            heard: None,
            sent: None,
            jitter: 0,
        }
    }

    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Names this session in the packets of the peer.
    #[must_use]
    pub fn discriminator(&self) -> u32 {
        self.discriminator
    }

    /// Takes a packet that passed [`Packet::decode`] and arrived from this session's peer (6.8.6).
    ///
    /// # Errors
    /// The packet is for another session, or this one is administratively down.
    pub fn on_packet(
        &mut self,
        now_ns: u64,
        packet: &Packet,
        random: u32,
    ) -> Result<Actions, Reject> {
        if packet.your_discriminator != 0 && packet.your_discriminator != self.discriminator {
            return Err(Reject::UnknownDiscriminator);
        }
        self.remote = Remote::of(packet);
        if packet.finish {
            self.poll = match self.poll {
                Poll::Idle | Poll::Running => Poll::Idle,
                Poll::Again => Poll::Running,
            };
            self.settle();
        }
        if self.state == State::AdminDown {
            return Err(Reject::AdminDown);
        }
        self.heard = Some(now_ns);

        let event = match (self.state, packet.state) {
            (State::Down, State::Down) => self.enter(State::Init, Diagnostic::None),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                self.enter(State::Up, Diagnostic::None)
            }
            (State::Init | State::Up, State::AdminDown) | (State::Up, State::Down) => {
                self.enter(State::Down, Diagnostic::NeighborSignaledDown)
            }
            (State::Down, State::AdminDown | State::Up)
            | (State::Init, State::Down)
            | (State::Up, State::Init | State::Up)
            | (State::AdminDown, _) => Entered::Nothing,
        };
        let send = if packet.poll {
            // Regardless of the transmission timer, which it leaves alone (6.8.7).
            Some(Packet {
                poll: false,
                finish: true,
                ..self.packet()
            })
        } else if event.changed() {
            Some(self.transmit(now_ns, random))
        } else {
            None
        };
        let event = event.event();
        Ok(Actions { send, event })
    }

    /// What is due at [`Session::next_deadline`]: the next packet, or the end of the detection time
    /// (6.8.4). Too early is harmless.
    pub fn on_tick(&mut self, now_ns: u64, random: u32) -> Actions {
        let mut entered = Entered::Nothing;
        if self
            .detection_deadline()
            .is_some_and(|deadline| deadline <= now_ns)
        {
            self.heard = None;
            self.remote = Remote::UNKNOWN;
            self.poll = Poll::Idle;
            entered = match self.state {
                State::Init | State::Up => {
                    self.enter(State::Down, Diagnostic::DetectionTimeExpired)
                }
                State::AdminDown | State::Down => Entered::Nothing,
            };
        }
        let due = self
            .transmission_deadline()
            .is_some_and(|deadline| deadline <= now_ns);
        Actions {
            send: (due || entered.changed()).then(|| self.transmit(now_ns, random)),
            event: entered.event(),
        }
    }

    /// When [`Session::on_tick`] has something to do; earlier only if there is an input before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let deadlines = [self.transmission_deadline(), self.detection_deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// Changes what is negotiated; a poll sequence tells the peer (6.8.3).
    pub fn reconfigure(&mut self, config: Config) {
        let changed = config.required_min_rx != self.config.required_min_rx;
        self.config = config;
        self.announce(changed);
    }

    /// Tells the peer that this end was taken out of service, until [`Session::enable`] (6.8.16).
    /// The peer is not to take the path for failed.
    pub fn disable(&mut self, now_ns: u64, random: u32) -> Actions {
        let entered = self.enter(State::AdminDown, Diagnostic::AdministrativelyDown);
        self.heard = None;
        Actions {
            send: entered.changed().then(|| self.transmit(now_ns, random)),
            event: entered.event(),
        }
    }

    /// Takes the session back into service.
    pub fn enable(&mut self, now_ns: u64, random: u32) -> Actions {
        if self.state != State::AdminDown {
            return Actions::default();
        }
        let _ = self.enter(State::Down, Diagnostic::None);
        Actions {
            send: Some(self.transmit(now_ns, random)),
            event: None,
        }
    }

    /// Nanoseconds without a packet after which the peer is lost; `None` while it is not heard.
    #[must_use]
    pub fn detection_time(&self) -> Option<u64> {
        self.heard?;
        let interval = self.rx_in_use.max(self.remote.desired_min_tx);
        Some(u64::from(self.remote.multiplier) * u64::from(interval) * 1000)
    }

    fn detection_deadline(&self) -> Option<u64> {
        Some(self.heard?.saturating_add(self.detection_time()?))
    }

    /// When the next periodic packet is due; `None` where the peer wants none. Follows at once from
    /// the intervals, so that a shorter one is kept from the previous packet on (6.8.3).
    fn transmission_deadline(&self) -> Option<u64> {
        let unwanted = self.remote.demand
            && (self.state, self.remote.state) == (State::Up, State::Up)
            && self.poll == Poll::Idle;
        if unwanted || self.remote.required_min_rx == 0 {
            return None;
        }
        let Some(sent) = self.sent else {
            return Some(0);
        };
        let interval = u64::from(self.tx_in_use.max(self.remote.required_min_rx));
        let percent = interval * 10;
        // 75 to 100 percent, or 90 where the peer may not miss a single packet (6.8.7).
        let range = if self.config.multiplier == 1 { 15 } else { 25 };
        let jitter = (percent * range * u64::from(self.jitter)) >> 16;
        Some(sent.saturating_add(percent * 75 + jitter))
    }

    fn enter(&mut self, state: State, diagnostic: Diagnostic) -> Entered {
        let from = std::mem::replace(&mut self.state, state);
        if from == state {
            return Entered::Nothing;
        }
        self.diagnostic = diagnostic;
        self.announce(false);
        match (from, state) {
            (_, State::Up) => Entered::Event(Event::Up),
            (State::Up, _) => Entered::Event(Event::Down {
                diagnostic,
                ended: self.remote.state == State::AdminDown,
            }),
            _ => Entered::Quietly,
        }
    }

    /// Brings the announced interval in line with configuration and state; `changed` if another
    /// parameter has changed as well.
    fn announce(&mut self, changed: bool) {
        let desired_min_tx = if self.state == State::Up {
            self.config.desired_min_tx
        } else {
            self.config.desired_min_tx.max(SLOW)
        };
        let before = std::mem::replace(&mut self.desired_min_tx, desired_min_tx);
        if before != desired_min_tx || changed {
            self.poll = match self.poll {
                // Nobody there to answer.
                _ if self.remote.discriminator == 0 => Poll::Idle,
                Poll::Idle => Poll::Running,
                Poll::Running | Poll::Again => Poll::Again,
            };
        }
        self.settle();
    }

    /// Puts the announced intervals in use, as far as that need not wait for the end of a poll
    /// sequence (6.8.3).
    fn settle(&mut self) {
        let (tx, rx) = (self.desired_min_tx, self.config.required_min_rx);
        let wait = self.state == State::Up && self.poll != Poll::Idle;
        (self.tx_in_use, self.rx_in_use) = if wait {
            (self.tx_in_use.min(tx), self.rx_in_use.max(rx))
        } else {
            (tx, rx)
        };
    }

    fn transmit(&mut self, now_ns: u64, random: u32) -> Packet {
        self.sent = Some(now_ns);
        self.jitter = (random >> 16) as u16;
        self.packet()
    }

    /// What there is to say now (6.8.7).
    fn packet(&self) -> Packet {
        Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: self.poll != Poll::Idle,
            finish: false,
            control_plane_independent: false,
            demand: false,
            multiplier: self.config.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx: self.desired_min_tx,
            required_min_rx: self.config.required_min_rx,
            required_min_echo_rx: 0,
        }
    }
}

/// What became of the state.
#[derive(Clone, Copy)]
enum Entered {
    Nothing,
    Quietly,
    Event(Event),
}

impl Entered {
    fn changed(self) -> bool {
        !matches!(self, Self::Nothing)
    }

    fn event(self) -> Option<Event> {
        match self {
            Self::Nothing | Self::Quietly => None,
            Self::Event(event) => Some(event),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::packet::tests::packet;
    use super::*;

    /// Nanoseconds.
    const MS: u64 = 1_000_000;
    const OURS: u32 = 0x0a0b_0c0d;
    const THEIRS: u32 = 0x0102_0304;
    const CONFIG: Config = Config {
        desired_min_tx: 40_000,
        required_min_rx: 30_000,
        multiplier: 3,
    };

    /// A session in `state`, brought there at 0 by a peer that wants 50 ms and takes 60 ms, three
    /// times; its poll sequence, if any, is over.
    fn session(state: State) -> Session {
        let mut session = Session::new(CONFIG, OURS);
        let steps: &[State] = match state {
            State::AdminDown => {
                let _ = session.disable(0, 0);
                &[]
            }
            State::Down => &[],
            State::Init => &[State::Down],
            State::Up => &[State::Down, State::Up],
        };
        for &step in steps {
            let _ = session.on_packet(0, &packet(step), 0).unwrap();
        }
        if state == State::Up {
            let finish = Packet {
                finish: true,
                ..packet(State::Up)
            };
            let _ = session.on_packet(0, &finish, 0).unwrap();
        }
        assert_eq!(session.state(), state);
        session
    }

    #[test]
    fn each_received_state_has_its_transition() {
        use State::{AdminDown, Down, Init, Up};
        let down = |ended| {
            let diagnostic = Diagnostic::NeighborSignaledDown;
            Some(Event::Down { diagnostic, ended })
        };
        let table = [
            (Down, AdminDown, Down, None),
            (Down, Down, Init, None),
            (Down, Init, Up, Some(Event::Up)),
            (Down, Up, Down, None),
            (Init, AdminDown, Down, None),
            (Init, Down, Init, None),
            (Init, Init, Up, Some(Event::Up)),
            (Init, Up, Up, Some(Event::Up)),
            (Up, AdminDown, Down, down(true)),
            (Up, Down, Down, down(false)),
            (Up, Init, Up, None),
            (Up, Up, Up, None),
        ];
        for (from, received, to, event) in table {
            let mut session = session(from);
            let actions = session.on_packet(MS, &packet(received), 0).unwrap();
            assert_eq!(session.state(), to, "{from:?} {received:?}");
            assert_eq!(actions.event, event, "{from:?} {received:?}");
            // A change is told at once, and nothing else.
            let told = actions.send.map(|packet| packet.state);
            assert_eq!(told, (from != to).then_some(to), "{from:?} {received:?}");
            if from != Down && to == Down {
                let diagnostic = actions.send.unwrap().diagnostic;
                assert_eq!(diagnostic, Diagnostic::NeighborSignaledDown);
            }
        }
    }

    #[test]
    fn a_disabled_session_takes_no_part() {
        let mut session = session(State::Up);
        let actions = session.disable(MS, 0);
        let diagnostic = Diagnostic::AdministrativelyDown;
        let ended = false;
        assert_eq!(actions.event, Some(Event::Down { diagnostic, ended }));
        let told = actions.send.unwrap();
        assert_eq!(
            (told.state, told.diagnostic),
            (State::AdminDown, diagnostic)
        );
        for state in [State::AdminDown, State::Down, State::Init, State::Up] {
            let poll = Packet {
                poll: true,
                ..packet(state)
            };
            assert_eq!(session.on_packet(MS, &poll, 0), Err(Reject::AdminDown));
        }
        assert_eq!(session.state(), State::AdminDown);
        assert_eq!(session.detection_time(), None);
        assert_eq!(session.disable(MS, 0), Actions::default());

        let told = session.enable(2 * MS, 0).send.unwrap();
        assert_eq!(
            (told.state, told.diagnostic),
            (State::Down, Diagnostic::None)
        );
        assert_eq!(session.enable(2 * MS, 0), Actions::default());
        let _ = session.on_packet(3 * MS, &packet(State::Init), 0).unwrap();
        assert_eq!(session.state(), State::Up);
    }

    #[test]
    fn the_peer_is_named_as_soon_as_it_is_known() {
        let mut session = Session::new(CONFIG, OURS);
        let first = session.on_tick(0, 0).send.unwrap();
        assert_eq!(
            (first.my_discriminator, first.your_discriminator),
            (OURS, 0)
        );
        let hello = Packet {
            your_discriminator: 0,
            ..packet(State::Down)
        };
        let answer = session.on_packet(MS, &hello, 0).unwrap().send.unwrap();
        assert_eq!(answer.your_discriminator, THEIRS);

        let other = Packet {
            your_discriminator: OURS + 1,
            ..packet(State::Init)
        };
        let before = format!("{session:?}");
        assert_eq!(
            session.on_packet(2 * MS, &other, 0),
            Err(Reject::UnknownDiscriminator)
        );
        assert_eq!(format!("{session:?}"), before);

        // A peer that started again has another name, and does not know ours.
        let _ = session.on_packet(3 * MS, &packet(State::Up), 0).unwrap();
        let restarted = Packet {
            my_discriminator: 77,
            ..hello
        };
        let actions = session.on_packet(4 * MS, &restarted, 0).unwrap();
        assert_eq!(session.state(), State::Down);
        assert_eq!(actions.send.unwrap().your_discriminator, 77);
    }

    #[test]
    fn detection_time_is_the_peers_multiplier_times_the_slower_interval() {
        // Our 30 ms against the peer's.
        for (theirs, multiplier, expected) in [
            (50_000, 3, 150 * MS),
            (10_000, 3, 90 * MS),
            (30_000, 1, 30 * MS),
            (u32::MAX, 255, 255 * u64::from(u32::MAX) * 1000),
        ] {
            let mut session = session(State::Up);
            let packet = Packet {
                desired_min_tx: theirs,
                multiplier,
                ..packet(State::Up)
            };
            let _ = session.on_packet(5 * MS, &packet, 0).unwrap();
            assert_eq!(session.detection_time(), Some(expected));
            assert_eq!(session.detection_deadline(), Some(5 * MS + expected));
        }
        assert_eq!(session(State::Down).detection_time(), None);
    }

    #[test]
    fn a_silent_peer_is_lost_at_the_end_of_the_detection_time() {
        for from in [State::Init, State::Up] {
            let mut session = session(from);
            assert_eq!(session.on_tick(150 * MS - 1, 0).event, None);
            assert_eq!(session.state(), from);
            let actions = session.on_tick(150 * MS, 0);
            let diagnostic = Diagnostic::DetectionTimeExpired;
            let ended = false;
            let event = (from == State::Up).then_some(Event::Down { diagnostic, ended });
            assert_eq!(actions.event, event);
            let told = actions.send.unwrap();
            assert_eq!((told.state, told.diagnostic), (State::Down, diagnostic));
            // The peer is forgotten: it may come back as another.
            assert_eq!((told.your_discriminator, told.poll), (0, false));
            assert_eq!(told.desired_min_tx, SLOW);
            assert_eq!(session.on_tick(160 * MS, 0), Actions::default());
        }
    }

    #[test]
    fn a_peer_that_wanted_no_packets_is_called_again_once_lost() {
        let mut session = session(State::Down);
        let mute = Packet {
            required_min_rx: 0,
            ..packet(State::AdminDown)
        };
        let _ = session.on_packet(0, &mute, 0).unwrap();
        assert_eq!(session.next_deadline(), Some(150 * MS));
        assert!(session.on_tick(150 * MS, 0).send.is_some());
    }

    #[test]
    fn packets_are_slow_until_the_session_is_up() {
        let mut session = Session::new(CONFIG, OURS);
        assert_eq!(session.next_deadline(), Some(0));
        let packet = session.on_tick(0, u32::MAX).send.unwrap();
        assert_eq!(packet.desired_min_tx, SLOW);
        assert_eq!(packet.required_min_rx, 30_000);
        let next = session.next_deadline().unwrap();
        assert!((999 * MS..=1000 * MS).contains(&next), "{next}");
        assert_eq!(session.on_tick(next - 1, 0), Actions::default());
        assert!(session.on_tick(next, 0).send.is_some());
        assert_eq!(session.next_deadline(), Some(next + 750 * MS));

        // One that is configured slower still stays so.
        let config = Config {
            desired_min_tx: 2_000_000,
            ..CONFIG
        };
        let mut slower = Session::new(config, OURS);
        assert_eq!(slower.on_tick(0, 0).send.unwrap().desired_min_tx, 2_000_000);
    }

    #[test]
    fn the_slower_of_both_intervals_is_kept_with_its_jitter() {
        for (theirs, multiplier, random, expected) in [
            (60_000, 3, 0, 45_000),
            (60_000, 3, u32::MAX, 60_000),
            (60_000, 1, 0, 45_000),
            (60_000, 1, u32::MAX, 54_000),
            (10_000, 3, 0, 30_000),
            (10_000, 3, 1 << 31, 35_000),
        ] {
            let mut session = session(State::Up);
            session.config.multiplier = multiplier;
            let packet = Packet {
                required_min_rx: theirs,
                ..packet(State::Up)
            };
            let _ = session.on_packet(MS, &packet, 0).unwrap();
            assert!(session.on_tick(100 * MS, random).send.is_some());
            let next = session.transmission_deadline().unwrap() - 100 * MS;
            // Nearly the whole range is met.
            let exact = expected * 1000;
            assert!((exact - exact / 1000..=exact).contains(&next), "{next}");
        }
    }

    #[test]
    fn a_peer_in_demand_mode_is_left_alone() {
        let mut session = session(State::Up);
        let demand = Packet {
            demand: true,
            ..packet(State::Up)
        };
        let _ = session.on_packet(MS, &demand, 0).unwrap();
        assert_eq!(session.transmission_deadline(), None);
        // But not while it is to answer.
        session.reconfigure(Config {
            desired_min_tx: 20_000,
            ..CONFIG
        });
        assert!(session.on_tick(100 * MS, 0).send.unwrap().poll);
    }

    #[test]
    fn coming_up_is_followed_by_a_poll_sequence() {
        let mut session = session(State::Init);
        let told = session.on_packet(MS, &packet(State::Up), 0).unwrap();
        let told = told.send.unwrap();
        assert_eq!((told.poll, told.desired_min_tx), (true, 40_000));
        // The faster pace is kept at once, and each packet polls until it is answered.
        let mut now = MS;
        for _ in 0..3 {
            let next = session.transmission_deadline().unwrap();
            assert_eq!(next, now + 45 * MS);
            now = next;
            assert!(session.on_tick(now, 0).send.unwrap().poll);
            let _ = session.on_packet(now, &packet(State::Up), 0).unwrap();
        }
        let finish = Packet {
            finish: true,
            ..packet(State::Up)
        };
        assert_eq!(session.on_packet(now, &finish, 0), Ok(Actions::default()));
        assert!(!session.on_tick(now + 60 * MS, 0).send.unwrap().poll);
    }

    #[test]
    fn a_poll_is_answered_at_once_whatever_the_timer() {
        let mut session = session(State::Up);
        let _ = session.on_tick(MS, 0);
        let before = session.transmission_deadline();
        session.reconfigure(CONFIG);
        let poll = Packet {
            poll: true,
            ..packet(State::Up)
        };
        let answer = session.on_packet(2 * MS, &poll, 0).unwrap().send.unwrap();
        assert_eq!((answer.poll, answer.finish), (false, true));
        assert_eq!(session.transmission_deadline(), before);
        // Never both bits, even in the middle of a sequence of our own.
        session.reconfigure(Config {
            required_min_rx: 31_000,
            ..CONFIG
        });
        let answer = session.on_packet(3 * MS, &poll, 0).unwrap().send.unwrap();
        assert_eq!((answer.poll, answer.finish), (false, true));
        assert!(session.on_tick(90 * MS, 0).send.unwrap().poll);
    }

    #[test]
    fn slower_waits_for_the_peer_and_faster_does_not() {
        let finish = Packet {
            finish: true,
            ..packet(State::Up)
        };
        let mut session = session(State::Up);
        // Slower sending and quicker detection wait.
        session.reconfigure(Config {
            desired_min_tx: 80_000,
            required_min_rx: 10_000,
            multiplier: 3,
        });
        assert_eq!((session.tx_in_use, session.rx_in_use), (40_000, 30_000));
        let told = session.on_tick(100 * MS, 0).send.unwrap();
        assert_eq!(
            (told.desired_min_tx, told.required_min_rx),
            (80_000, 10_000)
        );
        assert!(told.poll);
        let _ = session.on_packet(101 * MS, &finish, 0).unwrap();
        assert_eq!((session.tx_in_use, session.rx_in_use), (80_000, 10_000));
        // The opposite does not.
        session.reconfigure(CONFIG);
        assert_eq!((session.tx_in_use, session.rx_in_use), (40_000, 30_000));

        // A change in the middle is polled for again: the answer may be to the first.
        session.reconfigure(Config {
            desired_min_tx: 90_000,
            ..CONFIG
        });
        let _ = session.on_packet(102 * MS, &finish, 0).unwrap();
        assert_eq!(session.tx_in_use, 40_000);
        let _ = session.on_packet(103 * MS, &finish, 0).unwrap();
        assert_eq!((session.tx_in_use, session.poll), (90_000, Poll::Idle));

        // No longer up: nothing to wait for.
        session.reconfigure(Config {
            desired_min_tx: 95_000,
            ..CONFIG
        });
        let _ = session
            .on_packet(104 * MS, &packet(State::Down), 0)
            .unwrap();
        assert_eq!(session.tx_in_use, SLOW);
    }

    /// Two sessions and the packets between them.
    #[derive(Debug)]
    struct Pair {
        now: u64,
        ends: [Session; 2],
        /// Nanoseconds from each end to the other.
        delay: [u64; 2],
        /// Percent of each end's packets that get lost.
        loss: [u32; 2],
        /// Arrival, receiver, packet.
        flying: Vec<(u64, usize, Packet)>,
        random: u64,
        events: Vec<(u64, usize, Event)>,
    }

    impl Pair {
        fn random(&mut self) -> u32 {
            // Knuth's MMIX constants.
            self.random = self
                .random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.random >> 32) as u32
        }

        fn act(&mut self, end: usize, actions: Actions) {
            if let Some(event) = actions.event {
                self.events.push((self.now, end, event));
            }
            let Some(packet) = actions.send else {
                return;
            };
            assert!(!(packet.poll && packet.finish));
            let lost = self.random() % 100 < self.loss[end];
            if !lost {
                // Through the wire format.
                let packet = Packet::decode(&packet.encode()).unwrap();
                self.flying
                    .push((self.now + self.delay[end], 1 - end, packet));
            }
        }

        /// Lets time pass.
        fn run(&mut self, until: u64) {
            loop {
                // On a tie the packet comes first, as in the task.
                let arrival = (0..self.flying.len()).min_by_key(|&n| self.flying[n].0);
                let arrival = arrival.map(|n| (self.flying[n].0, n));
                let tick = (0..2)
                    .filter_map(|end| Some((self.ends[end].next_deadline()?, end)))
                    .min();
                let random = self.random();
                let (at, end, actions) = match (arrival, tick) {
                    (Some((at, n)), tick) if tick.is_none_or(|(tick, _)| at <= tick) => {
                        if at > until {
                            break;
                        }
                        let (at, end, packet) = self.flying.remove(n);
                        (at, end, self.ends[end].on_packet(at, &packet, random))
                    }
                    (_, Some((at, end))) => {
                        let at = at.max(self.now);
                        if at > until {
                            break;
                        }
                        (at, end, Ok(self.ends[end].on_tick(at, random)))
                    }
                    _ => break,
                };
                self.now = at;
                self.act(end, actions.unwrap());
            }
            self.now = until;
        }

        fn both(&self, state: State) -> bool {
            self.ends.iter().all(|end| end.state() == state)
        }
    }

    fn config() -> impl Strategy<Value = Config> {
        (10_000..300_000_u32, 10_000..300_000_u32, 1..6_u8).prop_map(
            |(desired_min_tx, required_min_rx, multiplier)| Config {
                desired_min_tx,
                required_min_rx,
                multiplier,
            },
        )
    }

    fn pair() -> impl Strategy<Value = Pair> {
        (
            [config(), config()],
            [0..4 * MS, 0..4 * MS],
            [0..100_u32, 0..100],
            any::<u64>(),
        )
            .prop_map(|(configs, delay, loss, random)| Pair {
                now: 0,
                ends: [
                    Session::new(configs[0], OURS),
                    Session::new(configs[1], THEIRS),
                ],
                delay,
                loss,
                flying: Vec::new(),
                random,
                events: Vec::new(),
            })
    }

    proptest! {
        #[test]
        fn a_pair_is_up_exactly_while_packets_pass(
            mut pair in pair(),
            changes in [config(), config()],
            lossy in 0..20_000_u64,
            silent in 1..4_u8,
        ) {
            pair.run(lossy * MS);

            // The loss ends: what is left of the slowest detection time, and three slow packets.
            pair.loss = [0, 0];
            pair.run(pair.now + 9_000 * MS);
            prop_assert!(pair.both(State::Up), "{:#?}", pair.ends);
            let polls = pair.ends.iter().filter(|end| end.poll != Poll::Idle);
            prop_assert_eq!(polls.count(), 0);

            // Nothing but a failure takes it down, neither time nor other intervals.
            pair.events.clear();
            for (end, change) in changes.into_iter().enumerate() {
                pair.run(pair.now + 2_000 * MS);
                let multiplier = pair.ends[end].config.multiplier;
                pair.ends[end].reconfigure(Config { multiplier, ..change });
            }
            pair.run(pair.now + 2_000 * MS);
            prop_assert_eq!(&pair.events, &[]);

            // One direction or both fail: the deaf end notices within its detection time, and the
            // other hears of it or notices as well.
            for end in 0..2 {
                if silent & (1 << end) != 0 {
                    pair.loss[end] = 100;
                }
            }
            let start = pair.now;
            let detection = pair.ends.clone().map(|end| end.detection_time().unwrap());
            pair.run(start + 2_000 * MS);
            let mut down = [None; 2];
            for (at, end, event) in &pair.events {
                prop_assert_ne!(*event, Event::Up);
                prop_assert_eq!(down[*end].replace(at - start), None);
            }
            for end in 0..2 {
                let deaf = pair.loss[1 - end] == 100;
                let within = if deaf {
                    pair.delay[1 - end] + detection[end]
                } else {
                    pair.delay[end] + detection[1 - end] + pair.delay[1 - end]
                };
                let took = down[end].unwrap();
                prop_assert!(took <= within, "{took} > {within}");
            }

            // And up again.
            pair.loss = [0, 0];
            pair.run(pair.now + 9_000 * MS);
            prop_assert!(pair.both(State::Up));
        }
    }
}
