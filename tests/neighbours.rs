//! Tests very many namespaces of one user beside listenq's own namespace: listenq's own listeners
//! are sampled as often as without them, and all samples together stay within the budget.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code: a panic is its report")]
#![allow(clippy::print_stdout, reason = "the measured figures are for the reader of --nocapture")]

use std::time::{Duration, Instant};

use listenq_lab::client::fill;
use listenq_lab::listener::Listen;
use listenq_lab::listenq::Launch;
use listenq_lab::netns::Netns;
use listenq_lab::script::Script;
use listenq_lab::tool::require_tool;
use listenq_lab::wait::eventually;

const BIN: &str = env!("CARGO_BIN_EXE_listenq");
const TIMEOUT: Duration = Duration::from_secs(120);
/// The number of namespaces that exist before the start, unless `NEIGHBOURS` says otherwise.
const NAMESPACES: usize = 150;
/// The time until listenq is ready. Code without optimization takes longer, and so does a machine
/// that is busy with other tests.
const READY: Duration = Duration::from_secs(if cfg!(debug_assertions) { 4 } else { 2 });
/// The CPU budget of samples. Code without optimization takes ten times as long.
const BUDGET: f64 = if cfg!(debug_assertions) { 0.2 } else { 0.02 };
/// The most that listenq may use of a core: 2.5 %, and slack for scrapes and a busy machine. Owners
/// and scans of code without optimization may each use a hundredth of a core.
const MOST_USED: f64 = if cfg!(debug_assertions) { 1.25 * BUDGET + 0.02 } else { 0.03 };
/// A child process per namespace listens at 20 ports, and prints a byte when it is ready.
const SCENE: &str = "
import os, socket, sys, ctypes
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
os.setuid(int(sys.argv[2]))
for n in range(int(sys.argv[1])):
    if os.fork() == 0:
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET): os._exit(1)
        kept = []
        for _ in range(20):
            s = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen(5); kept.append(s)
        os.write(1, b'x')
        sys.stdin.read()
        os._exit(0)
os.write(1, b'')
sys.stdin.read()
";

/// Processes of one user, each in its own user and network namespace.
fn hoarder(uid: u32, namespaces: usize) -> Script {
    Script::start(None, SCENE, &[namespaces.to_string(), uid.to_string()], namespaces)
}

#[test]
fn very_many_namespaces_of_a_user_do_not_slow_down_the_own_namespace() {
    if !Netns::require_root() || !require_tool("python3") {
        return;
    }
    let own = Netns::new("own");
    let listener = own.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    let clients = own.run(|| fill(listener.target(), 20));
    let namespaces = std::env::var("NEIGHBOURS").map_or(NAMESPACES, |text| text.parse().unwrap());
    let hoarder = hoarder(4_242, namespaces);
    let begin = Instant::now();
    let daemon = Launch::new(BIN)
        .args(&["--netns=all", &format!("--sample.cpu-budget={BUDGET}")])
        .inside(&own)
        .start();
    let ready = begin.elapsed();
    let sampled =
        || daemon.scrape().value("listenq_namespaces", &[("state", "sampled")]).unwrap_or_default();
    let first = daemon.scrape();
    let state = |state| first.value("listenq_namespaces", &[("state", state)]);
    println!("at first {:?} sampled, {:?} waiting", state("sampled"), state("waiting"));
    // The own listeners are seen at once, and namespaces that wait are counted and have no series.
    assert_eq!(first.of_netns("host").listener("127.0.0.1", listener.port()).length, Some(5.0));
    if namespaces <= NAMESPACES {
        eventually("all namespaces", TIMEOUT, || (sampled() >= namespaces as f64).then_some(()));
    }
    // The first samples measure the cost of each namespace.
    std::thread::sleep(Duration::from_secs(5));
    let pod = Netns::new("pod");
    let pods = pod.run(|| Listen::tcp("127.0.0.1:0").backlog(4).open());
    // A new namespace without trouble has series later than it is sampled.
    let in_pod = pod.run(|| fill(pods.target(), 20));
    let came = Instant::now();
    let (samples, cpu, begin) = (daemon.scrape(), daemon.cpu(), Instant::now());
    let seen = eventually("the new pod", TIMEOUT, || {
        // Scrapes without a pause would use more CPU time than the samples.
        std::thread::sleep(Duration::from_millis(500));
        let scrape = daemon.scrape();
        let label = [("netns", pod.name())];
        scrape.value("listenq_netns_sampled_seconds_total", &label)?;
        Some(came.elapsed())
    });
    let lasting = Duration::from_secs(if namespaces > NAMESPACES { 60 } else { 15 });
    std::thread::sleep(lasting.saturating_sub(begin.elapsed()));
    let took = begin.elapsed().as_secs_f64();
    let after = daemon.scrape();
    let count = |name| after.value(name, &[]).unwrap() - samples.value(name, &[]).unwrap();
    let rate = count("listenq_samples_total") / took;
    let share = (daemon.cpu() - cpu).as_secs_f64() / took;
    let all = sampled();
    println!(
        "{all} of {namespaces} namespaces: ready after {ready:.2?}, {rate:.1} samples a second, {:.2} % of a core, a new pod after {seen:.1?}, {:.1} MiB",
        100.0 * share,
        daemon.resident() as f64 / f64::from(1 << 20),
    );
    assert!(rate >= 5.0, "{rate}");
    assert!(share < MOST_USED, "{share}");
    assert!(seen < Duration::from_secs(15));
    assert!(ready < READY, "{ready:?}");
    drop((clients, in_pod, pods, hoarder));
}
