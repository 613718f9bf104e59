//! A network from its start to its end: everything that is named on the command line is opened, then the process is
//! confined, and only then the first frame is read.

use std::path::PathBuf;
use std::sync::Arc;

use ethlink::{Address, Namespace};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vpnkit::{Engine, Stopper, Update};
use vpnkit_control::{Api, Network, Settings};
use vpnkit_sandbox::warden::{Ending, Named};
use vpnkit_sandbox::{Charge, Code, Report, Warden, confine, return_large_buffers};

use crate::attach;
use crate::cli::{Cli, Local, YesNo};
use crate::control;
use crate::detours::{Detours, Interception, Later, sockets_of};
use crate::failure::Failure;
use crate::forwarder;
use crate::watched::Watched;

/// Serves a network until it is told to stop, or what it serves is gone.
pub fn serve(cli: &Cli) -> Result<(), Failure> {
    control::check_folders(cli)?;
    raise_open_files();
    return_large_buffers();
    let mut config = cli.config()?;
    check_namespace(cli)?;
    let watched = Watched::of(cli);
    watched.check()?;
    // Before anything is open that is not the warden's, and while there is one thread.
    let (warden, mut events) = Warden::start(charge(cli, &watched)).map_err(|error| Failure::of(&error))?;
    let warden = Arc::new(warden);
    let texts = watched.first(&mut events)?;
    let later = Arc::new(Later::default());
    let attached = attach::attach(cli, &config.network, &later)?;
    config.inside = attached.inside;
    let listening = control::listen(cli)?;
    let trees = forwarder::bind(cli)?;
    let offers = control::offers(cli)?;
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])
        .map_err(|error| Failure::of(&error))?;
    for path in own_sockets(cli).into_iter().chain(forwarder::paths(cli)?) {
        // Without the warden, which is told last what it is for, sockets stay behind; nothing else is lost.
        let _ = warden.own(&path);
    }
    warden.seal().map_err(|error| Failure::of(&error))?;
    // Later there is no /proc.
    let code = Code::find();
    let sandbox = sandbox(cli)?;

    let detours = Arc::new(Detours::start(cli, Arc::clone(&warden), later)?);
    watched.begin(&texts, &mut config, &detours)?;
    config.intercept = Some(Arc::new(Interception(Arc::clone(&detours))));
    let (link, recorder) = control::capture(cli, attached.link, attached.switch.as_ref());
    let engine = Arc::new(Engine::start(config, link).map_err(|error| Failure::of(&error))?);
    if let Some(tap) = attached.tap {
        engine.update(Update::Reserve(tap, cli.guest_ip()));
    }
    detours.attach(&engine);
    watched.apply_all(texts, &engine, &detours);
    let exposed = control::expose(cli, Arc::clone(&engine) as Arc<dyn Network>, &warden)?;
    let api = Api {
        paths: control::paths(cli, Arc::clone(exposed.network()), &warden),
        exposed,
        recorder,
        status: Arc::new(crate::status::of(sandbox.as_ref())),
        proxy: detours.has_proxy().then(|| Arc::clone(&detours) as Arc<dyn Settings>),
        zones: Arc::default(),
        switch: attached.switch,
    };
    forwarder::serve(trees, &api)?;
    let _servers = control::serve(listening, &api)?;
    offers.serve(&api)?;
    if let Some(report) = &sandbox {
        eprintln!("vpnkit: sandbox: {report}");
    }
    #[cfg(debug_assertions)]
    crate::trying::all(&cli.attempts);
    let (changes, stopper) = (Arc::clone(&engine), engine.stopper());
    std::thread::Builder::new()
        .name("files".into())
        .spawn(move || {
            watched.follow(&mut events, &changes, &detours);
            stopper.stop();
        })
        .map_err(|error| Failure::of(&error))?;
    stop_after("signals", engine.stopper(), move || {
        signals.forever().next();
    })?;
    if let Ok(code) = code {
        code.release();
    }
    engine.wait();
    Ok(())
}

/// Errs for a namespace that is not there: else what ends with it would end before its helper says why.
fn check_namespace(cli: &Cli) -> Result<(), Failure> {
    let Some(netns) = &cli.netns else { return Ok(()) };
    let Ok(namespace) = netns.parse::<Namespace>();
    namespace.check().map_err(|error| Failure::bad(&error))
}

/// What the process outside does for this one.
fn charge(cli: &Cli, watched: &Watched) -> Charge {
    let ending = cli.netns.as_ref().map(|netns| {
        let Ok(namespace) = netns.parse::<Namespace>();
        Box::new(move || namespace.wait_until_gone()) as Ending
    });
    let sockets = forwarder::hypervisor(cli).into_iter().collect();
    let connects = watched.tunnels().map(|file| (file, sockets_of as Named));
    Charge { files: watched.paths(), ending, connects, folders: Some(cli.forward_sockets.clone()), sockets }
}

/// The Unix sockets that are made here.
fn own_sockets(cli: &Cli) -> Vec<PathBuf> {
    let settings = cli.classic.http_api_path.clone().map(Address::Unix);
    let all =
        cli.sockets().into_iter().map(|(_, address)| address).chain(cli.control.clone()).chain(settings);
    let offers = cli.classic.diagnostics.iter().chain(&cli.classic.pcap).filter_map(Local::path);
    all.filter_map(|address| match address {
        Address::Unix(path) => Some(path),
        Address::Tcp(_) => None,
    })
    .chain(offers)
    .collect()
}

/// Confines the process, unless that is not wanted, and says what became of it.
fn sandbox(cli: &Cli) -> Result<Option<Report>, Failure> {
    if cli.sandbox == YesNo::No {
        eprintln!("vpnkit: warning: no sandbox: whoever takes this process over has all of its rights");
        return Ok(None);
    }
    let report = confine(!cli.listen_vfkit.is_empty()).map_err(|error| {
        let failure = Failure::of(&error);
        Failure { message: format!("{}: --sandbox=no does without", failure.message), ..failure }
    })?;
    Ok(Some(report))
}

/// Stops the engine when `event` returns, on a thread of its own.
fn stop_after(name: &str, stopper: Stopper, event: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            event();
            stopper.stop();
        })
        .map(|_| ())
        .map_err(|error| Failure::of(&error))
}

/// Lets the process have as many descriptors as it may: each connection of a guest is one.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // If it fails, there are fewer connections, each refused with an error of its own.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
