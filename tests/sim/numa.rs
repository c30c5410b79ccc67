//! The node of a guest's memory is found, shown, and looked at where queues are dealt out.
//!
//! Memory lies on the node of the core that touched it first, so a guest of a node is one that was made there. With one
//! node there is only something to be shown.

use std::path::Path;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vswitch_api::rpc::{NoParams, SteerAction, SteerSetParams, SteeredQueue, methods};
use vswitch_simguest::memory::Layout;
use vswitch_tests::{Error, Result, RunDir, Switch, cases, check, skip};

use crate::config::apply;
use crate::load::Load;
use crate::setup::{Net, SOON, port};

cases!("numa":
    the_node_of_a_guests_memory_is_shown,
    queues_go_home,
);

fn ports(guests: usize) -> String {
    let vm = |n| format!("  vm{n}: {{ vhost-user: {{ socket: $RUN/vm{n}.sock }} }}\n");
    let ports: String = (1..=guests).map(vm).collect();
    format!("bridges: {{ br0: {{ }} }}\nports:\n{ports}")
}

/// A core of each node that has one for us.
fn nodes() -> Result<Vec<(u16, usize)>> {
    let allowed = sched_getaffinity(None);
    let allowed = allowed.map_err(|e| Error::Failed(format!("cores: {e}")))?;
    let node_of = |core: usize| {
        let folder = std::fs::read_dir(format!("/sys/devices/system/cpu/cpu{core}")).ok()?;
        let mut names = folder.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.find_map(|name| name.strip_prefix("node")?.parse::<u16>().ok())
    };
    let mut nodes: Vec<(u16, usize)> = Vec::new();
    for core in (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)) {
        // A kernel without NUMA has one node, and says nothing about it.
        let node = node_of(core).unwrap_or(0);
        if nodes.iter().all(|(known, _)| *known != node) {
            nodes.push((node, core));
        }
    }
    Ok(nodes)
}

/// The kernel may keep where pages are to itself: it has no NUMA, or a filter stands before it.
fn may_be_unknown() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let filtered = status.lines().any(|line| {
        line.strip_prefix("Seccomp:")
            .is_some_and(|n| n.trim() != "0")
    });
    filtered || !Path::new("/sys/devices/system/node/node0").exists()
}

/// Makes a guest on the node of this core.
fn guest_on(net: &mut Net<'_>, core: usize, layout: &Layout) -> Result<u8> {
    let pin = |set: &CpuSet| {
        sched_setaffinity(None, set).map_err(|e| Error::Failed(format!("pinning to a core: {e}")))
    };
    let before = sched_getaffinity(None).map_err(|e| Error::Failed(format!("cores: {e}")))?;
    let mut only = CpuSet::new();
    only.set(core);
    pin(&only)?;
    let made = net.add(|b| b.layout(layout.clone()));
    pin(&before)?;
    made
}

fn the_node_of_a_guests_memory_is_shown(dir: &RunDir) -> Result<()> {
    let nodes = nodes()?;
    let mut net = Net::new(dir, &ports(2 * nodes.len()), 0)?;
    let layouts = [
        Layout::scattered(3, 8 << 20),
        Layout::single(16 << 20).huge_if_free(),
    ];
    for (node, core) in nodes {
        for layout in &layouts {
            let n = guest_on(&mut net, core, layout)?;
            // It is asked for when the first transmit ring comes, which may be later than the link.
            net.switch.until("the node of its memory", SOON, || {
                let memory = net.switch.port(&port(n))?.vhost.map(|v| v.memory);
                let shown = net.switch.vswitchctl(&["port", "show", &port(n)])?;
                let line = shown.lines().find(|l| l.contains(" memory "));
                let text = line.unwrap_or_default();
                let named = memory.and_then(|m| m.node) == Some(node)
                    && text.ends_with(&format!(", node {node}"));
                let unknown = memory.is_some_and(|m| m.node.is_none() && !m.spread)
                    && text.ends_with(", node unknown");
                check!(
                    named || (unknown && may_be_unknown()),
                    "memory on node {node} is shown as {memory:?} and as {line:?}"
                );
                Ok(())
            })?;
        }
    }
    net.switch.accounted().map(drop)
}

fn queues(switch: &Switch<'_>) -> Result<Vec<SteeredQueue>> {
    Ok(switch.call::<methods::SteerShow>(&NoParams {})?.queues)
}

fn set(switch: &Switch<'_>, n: u8, worker: Option<u16>) -> Result<()> {
    let params = SteerSetParams {
        port: port(n),
        queue: 0,
        worker,
    };
    switch.call::<methods::SteerSet>(&params).map(drop)
}

/// Nobody is served from another node.
fn all_home(switch: &Switch<'_>) -> Result<()> {
    let queues = queues(switch)?;
    check!(
        queues.len() == 4 && queues.iter().all(|q| q.node.is_some() && !q.far),
        "not all are at home: {queues:?}"
    );
    Ok(())
}

/// A ring that comes goes to a worker on its guest's node; one that was elsewhere goes back there when it may.
fn queues_go_home(dir: &RunDir) -> Result<()> {
    let [(_, here), (_, there), ..] = nodes()?[..] else {
        skip!("queues have one home where there is one node")
    };
    let config = |rebalance: &str| {
        let workers = format!("workers: [{{ core: {here} }}, {{ core: {there} }}]\n");
        let steering = format!("steering: {{ scale: all, rebalance: {rebalance} }}\n");
        format!("{workers}{steering}{}", ports(4))
    };
    // A few frames at once are a load worth evening out where processors are slow.
    let mut net = Net::new(dir, &config("off"), 0)?;
    for core in [here, here, there, there] {
        guest_on(&mut net, core, &Layout::single(16 << 20))?;
    }
    net.introduce()?;
    all_home(&net.switch)?;
    set(&net.switch, 1, Some(1))?;
    set(&net.switch, 3, Some(0))?;
    let far: Vec<_> = queues(&net.switch)?.into_iter().filter(|q| q.far).collect();
    let names: Vec<_> = far.iter().map(|q| q.port.as_str()).collect();
    check!(names == ["vm1", "vm3"], "far from home are {far:?}");
    let workers = net.switch.vswitchctl(&["workers"])?;
    check!(
        workers.contains("vm1/0*") && workers.contains("vm3/0*"),
        "`vswitchctl workers` prints\n{workers}"
    );
    let loads = [Load::start(&mut net, 1, 2)?, Load::start(&mut net, 3, 4)?];
    for (n, load) in [1, 3].into_iter().zip(&loads) {
        load.wait_more(100)?;
        set(&net.switch, n, None)?;
    }
    apply(&net.switch, dir, &config("auto"))?;
    let home = || all_home(&net.switch);
    net.switch
        .until("everybody to be at home", SOON * 4, home)?;
    let trace = net.switch.call::<methods::SteerTrace>(&NoParams {})?;
    let moved = trace.decisions.iter();
    let mut moved = moved.filter(|d| d.action == SteerAction::Move);
    check!(
        moved.any(|d| d.reason.starts_with("its memory or device is on node")),
        "no reason is given: {:?}",
        trace.decisions
    );
    for load in loads {
        load.finish_whole(&mut net)?;
    }
    net.close_books()
}
