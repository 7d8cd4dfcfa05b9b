//! Random histories against the model of the outside world.
//!
//! After each event the promises of the state machine are checked: one owner a room, one `leave` a `join`, one end a
//! client, one answer a request, no `unload` for what is not loaded.

use proptest::prelude::*;

use super::model::{Load, Model, pick};
use super::*;

pub(super) const ROOMS: [&str; 8] = ["a", "A", "b", "B", "c", "room", "Room", "ROOM"];
const REASONS: [UnloadReason; 4] =
    [UnloadReason::Keepalive, UnloadReason::Admin, UnloadReason::Commanded, UnloadReason::Shutdown];
const CODES: [u16; 6] = [4002, 4002, 4004, 4005, 1001, 1001];

/// One thing that the world does. Numbers are indices, taken modulo what there is at that moment.
#[derive(Debug, Clone)]
enum Step {
    Join(usize),
    Leave(usize),
    LeaveDirectly(usize),
    Knock(usize),
    Withdraw(usize),
    Errors(usize, u8),
    Request { room: Option<usize>, create: bool },
    Outcome { request: usize, kind: u8 },
    LinkUp { monolith: u64 },
    LinkTwice { monolith: u64 },
    LinkDown(usize),
    State(usize, u8),
    Load { monolith: usize, room: usize, epoch: u32 },
    Unload { monolith: usize, room: usize, reason: usize },
    Gossip { monolith: usize, vanished: bool },
    Answer(usize),
    Kick(usize, usize),
    StaleKick(usize),
    Ghost(u8),
    Wait(u64),
    Policy(u8),
    Move { room: usize, to: u64 },
    Rebalance(Vec<(usize, u64)>),
    Claim(usize, u64),
    Quiet(usize, bool),
    Drain { monolith: u64, on: bool },
}

fn step() -> impl Strategy<Value = Step> {
    // Epochs close to each other and to the wraps, so that equal and crossing ones are common.
    let epoch = prop_oneof![0u32..6, (u32::MAX - 3)..=u32::MAX, 2_147_483_638u32..2_147_483_644];
    let index = || 0usize..1000;
    prop_oneof![
        12 => index().prop_map(Step::Join),
        5 => index().prop_map(Step::Leave),
        5 => index().prop_map(Step::LeaveDirectly),
        5 => index().prop_map(Step::Knock),
        1 => index().prop_map(Step::Withdraw),
        1 => (index(), 0u8..=10).prop_map(|(link, tenths)| Step::Errors(link, tenths)),
        5 => (proptest::option::weighted(0.8, index()), any::<bool>())
            .prop_map(|(room, create)| Step::Request { room, create: create || room.is_none() }),
        5 => (index(), 0u8..8).prop_map(|(request, kind)| Step::Outcome { request, kind }),
        4 => (1u64..5).prop_map(|monolith| Step::LinkUp { monolith }),
        1 => (1u64..5).prop_map(|monolith| Step::LinkTwice { monolith }),
        2 => index().prop_map(Step::LinkDown),
        1 => (index(), 0u8..4).prop_map(|(link, state)| Step::State(link, state)),
        8 => (index(), index(), epoch).prop_map(|(monolith, room, epoch)| Step::Load { monolith, room, epoch }),
        4 => (index(), index(), index()).prop_map(|(monolith, room, reason)| Step::Unload { monolith, room, reason }),
        5 => (index(), proptest::bool::weighted(0.3)).prop_map(|(monolith, vanished)| Step::Gossip { monolith, vanished }),
        8 => index().prop_map(Step::Answer),
        3 => (index(), index()).prop_map(|(member, code)| Step::Kick(member, code)),
        1 => index().prop_map(Step::StaleKick),
        1 => (0u8..6).prop_map(Step::Ghost),
        4 => (1u64..70).prop_map(|tenths| Step::Wait(tenths * SECOND / 10)),
        1 => (0u8..6).prop_map(Step::Policy),
        5 => (index(), 1u64..6).prop_map(|(room, to)| Step::Move { room, to }),
        2 => proptest::collection::vec((index(), 1u64..6), 0..6).prop_map(Step::Rebalance),
        8 => (index(), 0u64..24).prop_map(|(claim, outcome)| Step::Claim(claim, outcome)),
        5 => (index(), proptest::bool::weighted(0.3)).prop_map(|(room, disturbed)| Step::Quiet(room, disturbed)),
        1 => (1u64..6, proptest::bool::weighted(0.6)).prop_map(|(monolith, on)| Step::Drain { monolith, on }),
    ]
}

impl Model {
    fn take(&mut self, step: Step) {
        let link_at = |model: &Self, index| pick(index, model.peers.keys().copied());
        match step {
            Step::Join(room) => {
                let client = client(self.next_client);
                self.next_client += 1;
                self.clients.insert(client);
                let room = RoomName::parse(ROOMS[room % ROOMS.len()]).unwrap();
                let token = Token("secret".into());
                self.feed(Event::Join { client, room, token, region: None, reconnect: false });
            }
            Step::Leave(index) => {
                if let Some(client) = pick(index, self.clients.iter().copied()) {
                    self.clients.remove(&client);
                    self.feed(Event::Leave { client, told: None });
                }
            }
            Step::LeaveDirectly(index) => {
                if let Some(client) = pick(index, self.clients.iter().copied()) {
                    self.leave_directly(client);
                }
            }
            Step::Knock(room) => {
                let client = client(self.next_client);
                self.next_client += 1;
                self.knocking.insert(client);
                self.feed(Event::Knock { client, room: RoomKey::of(ROOMS[room % ROOMS.len()]) });
            }
            Step::Withdraw(index) => {
                if let Some(client) = pick(index, self.knocking.iter().copied()) {
                    self.knocking.remove(&client);
                    self.feed(Event::Withdraw { client });
                }
            }
            Step::Errors(index, tenths) => {
                if let Some(link) = link_at(self, index) {
                    let id = self.peers[&link].id.clone();
                    let errors = f64::from(tenths) / 10.0;
                    self.w.cluster.measure(|view| view.update(&id, |row| row.errors = errors));
                }
            }
            Step::Request { room, create } => self.request(room, create),
            Step::Outcome { request, kind } => {
                let known = self.awaited.keys().chain(&self.asking).copied().collect::<Vec<_>>();
                if let Some(request) = pick(request, known) {
                    self.outcome(request, kind);
                }
            }
            Step::LinkUp { monolith } => self.link_up(monolith),
            Step::LinkTwice { monolith } => {
                let id = super::monolith(monolith);
                if self.peers.values().any(|peer| peer.id == id) {
                    let link = LinkId(self.next_link);
                    self.next_link += 1;
                    self.feed(Event::LinkUp { link, endpoint: endpoint(9), monolith: id, region: Region::from("cdg") });
                    self.feed(Event::LinkDown { link });
                }
            }
            Step::LinkDown(index) => {
                if let Some(link) = link_at(self, index) {
                    self.link_down(link);
                }
            }
            Step::State(index, state) => {
                if let Some(link) = link_at(self, index) {
                    let states =
                        [MonolithState::Up, MonolithState::Up, MonolithState::Suspect, MonolithState::Draining];
                    let state = states[usize::from(state) % states.len()];
                    self.feed(Event::LinkState { link: LinkId(link), state });
                }
            }
            Step::Load { monolith, room, epoch } => {
                if let Some(link) = link_at(self, monolith) {
                    let report = report((ROOMS[room % ROOMS.len()], epoch));
                    let peer = self.peers.get_mut(&link).unwrap();
                    let spelling = report.name.spelling().to_string();
                    // The same number again is the same load, told twice.
                    let asked =
                        peer.loaded.get(report.name.key()).is_some_and(|load| load.epoch == epoch && load.asked);
                    peer.loaded.insert(report.name.key().clone(), Load { spelling, epoch, asked });
                    self.feed(Event::Loaded { link: LinkId(link), report });
                }
            }
            Step::Unload { monolith, room, reason } => {
                if let Some(link) = link_at(self, monolith)
                    && let Some(room) = pick(room, self.peers[&link].loaded.keys().cloned())
                {
                    self.unload(link, room, REASONS[reason % REASONS.len()]);
                }
            }
            Step::Gossip { monolith, vanished } => {
                if let Some(link) = link_at(self, monolith) {
                    self.gossip(link, vanished);
                }
            }
            Step::Answer(index) => {
                if let Some((link, client, attachment)) = pick(index, self.members()) {
                    self.answer(link, client, attachment);
                }
            }
            Step::Kick(index, code) => {
                if let Some((link, client, attachment)) = pick(index, self.members()) {
                    self.kick(link, client, attachment, CODES[code % CODES.len()]);
                }
            }
            Step::StaleKick(index) => {
                if let Some((link, client, attachment)) = pick(index, self.ended.clone()) {
                    let (link, code) = (LinkId(link), CloseCode::ROOM_NOT_FOUND);
                    self.feed(Event::Answered { link, client, attachment });
                    self.feed(Event::Kicked { link, client, attachment, code });
                }
            }
            Step::Ghost(kind) => {
                let link = LinkId(1_000_000);
                let report = report(("a", 1));
                self.feed(match kind {
                    0 => Event::Loaded { link, report },
                    1 => Event::Gossip { link, rooms: vec![report] },
                    2 => Event::LinkDown { link },
                    3 => Event::LinkState { link, state: MonolithState::Suspect },
                    4 => Event::DialFailed { endpoint: endpoint(2) },
                    _ => Event::Discovered { endpoints: vec![endpoint(1), endpoint(3)] },
                });
            }
            Step::Wait(time) => {
                self.w.now += time;
                self.feed(Event::Tick);
            }
            Step::Policy(kind) => {
                self.w.policy.answer = match kind {
                    0 => Answer::Reject { code: 4005, reason: "no".into() },
                    1 => Answer::Default,
                    first => Answer::Ranked((0..4).map(|n| monolith((n + u64::from(first)) % 4 + 1)).collect()),
                };
            }
            Step::Move { room, to } => {
                let room = RoomKey::of(ROOMS[room % ROOMS.len()]);
                self.feed(Event::Move { request: RequestId(0), room, to: super::monolith(to) });
            }
            Step::Claim(index, outcome) => {
                if let Some((room, (number, monolith, _))) = pick(index, self.claims.clone()) {
                    self.claims.remove(&room);
                    let outcome = match outcome {
                        0..=6 => ClaimOutcome::Granted,
                        7 => ClaimOutcome::Unavailable,
                        // For one of four Monoliths, with no epoch or one that loads often have.
                        by => ClaimOutcome::Taken {
                            by: RoomLoad {
                                monolith: super::monolith(by % 4 + 1),
                                epoch: u32::try_from(by / 4 - 2).unwrap().checked_sub(1).map(Epoch),
                            },
                            held: "another".into(),
                            expires_in: 3 * SECOND,
                        },
                    };
                    let answer = ClaimAnswer { number, monolith, outcome };
                    self.feed(Event::Claim { room, answer });
                }
            }
            Step::Rebalance(moves) => {
                let room = |room: usize| ROOMS[room % ROOMS.len()].to_string();
                let moves = moves.into_iter().map(|(of, to)| Move { room: room(of), to: super::monolith(to) });
                self.w.policy.moves = moves.collect();
            }
            Step::Quiet(index, disturbed) => self.quiet(index, disturbed),
            Step::Drain { monolith, on } => self.feed(Event::Drain { monolith: super::monolith(monolith), on }),
        }
    }
}

/// About ten seconds in a debug build, unless `PROPTEST_CASES` says otherwise.
fn config() -> ProptestConfig {
    let mut config =
        ProptestConfig { max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 600;
    }
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens_the_promises_hold(
        discovered in proptest::bool::weighted(0.8),
        others in proptest::bool::ANY,
        seamless in proptest::bool::weighted(0.7),
        monoliths in 0u64..4,
        steps in proptest::collection::vec(step(), 1..250),
    ) {
        let mut model = Model::new(discovered, others, seamless);
        for monolith in 1..=monoliths {
            model.link_up(monolith);
        }
        for step in steps {
            model.take(step);
        }
        model.settle();
    }
}
