//! The checker of the engine's descriptors finds what it is there for: each violation is planted, and seen.

use std::net::{SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};

use rustix::event::epoll::EventFlags;

use super::Host;
use super::forward::Bound;
use super::poller::Owner;
use crate::config::{Config, Forward, Resolvers};
use crate::link::MemoryLink;
use crate::waker::Waker;

/// An engine with two forwarded ports, not running.
fn host() -> Host {
    let (_, commands) = mpsc::channel();
    let config = Config { dns: Resolvers::Fixed(Vec::new()), hosts: None, ..Config::default() };
    let waker = Waker::new().unwrap();
    let mut host = Host::new(&config, Arc::new(MemoryLink::new()), waker, commands).unwrap();
    for _ in 0..2 {
        let bind: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let guest = "192.168.65.3:80".parse().unwrap();
        host.forward_add(Bound::new(Forward::tcp(bind, guest), 16).unwrap()).unwrap();
    }
    host
}

/// What the checker says after `plant`, which gets a socket of its own.
fn found(plant: fn(&mut Host, &UdpSocket)) -> String {
    let mut host = host();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    host.check();
    plant(&mut host, &socket);
    let panic = catch_unwind(AssertUnwindSafe(|| host.check())).expect_err("a violation that nobody finds");
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).expect("a panic with words")
}

fn add(host: &mut Host, socket: &UdpSocket, owner: Owner) {
    host.poller.add(socket, owner, EventFlags::IN).unwrap();
}

#[test]
fn violations_of_who_owns_which_descriptor_are_found() {
    type Plant = fn(&mut Host, &UdpSocket);
    let plants: [(&str, Plant); 5] = [
        // A descriptor that was leaked: its owner is gone.
        ("descriptors and their owners", |host, socket| add(host, socket, Owner::Forward(99))),
        // An owner whose descriptor nobody waits for.
        ("descriptors and their owners", |host, socket| {
            host.poller.remove_owner(socket, Owner::Forward(0));
        }),
        // As many as there should be, but one has two, and one has none.
        ("Forward(1) has two descriptors", |host, socket| {
            host.poller.remove_owner(socket, Owner::Forward(0));
            add(host, socket, Owner::Forward(1));
        }),
        // As many as there should be, but of another kind.
        ("descriptors and their owners", |host, socket| {
            host.poller.remove_owner(socket, Owner::Forward(0));
            add(host, socket, Owner::Dns(0));
        }),
        ("descriptors and their owners", |host, socket| {
            host.poller.remove_owner(socket, Owner::Waker);
            add(host, socket, Owner::Inside);
        }),
    ];
    for (number, (expected, plant)) in plants.into_iter().enumerate() {
        let said = found(plant);
        assert!(said.contains(expected), "violation {number}: {said:?} is said, and not {expected:?}");
    }
}
