//! A path of several hops: what routers on it say reaches the tools of the guest.

use crate::world::{World, has, run};

/// Puts two namespaces after the engine's: a router, and a target behind a link of 1400 bytes.
#[expect(clippy::print_stdout, reason = "a test says why it did not run")]
fn lay(world: &World) -> Option<(crate::world::Station, crate::world::Station)> {
    let (router, target) = (world.station(), world.station());
    let (r, t) = (router.pid(), target.pid());
    let laid = world.host_shell(&format!(
        "ip link add up0 type veth peer name down0 netns {r} &&
         ip address add 10.1.0.1/24 dev up0 && ip -6 address add 2001:db8:1::1/64 dev up0 nodad &&
         ip link set up0 up && ip route add default via 10.1.0.2 &&
         ip -6 route del default dev lo && ip -6 route add default via 2001:db8:1::2"
    ));
    if let Err(error) = laid {
        println!("SKIP: no pair of devices between namespaces: {error}");
        return None;
    }
    router.shell(&format!(
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
         echo 0 > /proc/sys/net/ipv4/icmp_ratelimit; echo 0 > /proc/sys/net/ipv6/icmp/ratelimit
         ip link set lo up
         ip address add 10.1.0.2/24 dev down0; ip -6 address add 2001:db8:1::2/64 dev down0 nodad
         ip link set down0 up
         ip link add up1 mtu 1400 type veth peer name down1 mtu 1400 netns {t}
         ip address add 10.2.0.1/24 dev up1; ip -6 address add 2001:db8:2::1/64 dev up1 nodad
         ip link set up1 up"
    ));
    target.shell(
        "ip link set lo up
         echo 0 > /proc/sys/net/ipv4/icmp_ratelimit; echo 0 > /proc/sys/net/ipv6/icmp/ratelimit
         ip address add 10.2.0.2/24 dev down1; ip -6 address add 2001:db8:2::2/64 dev down1 nodad
         ip link set down1 up; ip route add default via 10.2.0.1; ip -6 route add default via 2001:db8:2::1",
    );
    // Until the router answers over both.
    world
        .host_shell(
            "for i in $(seq 100); do ping -c1 -W1 10.2.0.2 && ping -6 -c1 -W1 2001:db8:2::2 && exit 0
             sleep 0.1; done; exit 1",
        )
        .expect("the path works");
    world.shell(
        "ip -6 address add fd76:706e:6b69:7400::77/64 dev tap0 nodad
         ip -6 route replace default via fd76:706e:6b69:7400::1",
    );
    Some((router, target))
}

#[test]
fn traceroute_shows_every_hop() {
    run("path::traceroute_shows_every_hop", 1500, |world| {
        if !has("traceroute") || !has("ping") {
            println!("SKIP: no traceroute or ping");
            return;
        }
        let Some(_path) = lay(world) else { return };
        let four = ["192.168.65.1", "10.1.0.2", "10.2.0.2"];
        let six = ["fd76:706e:6b69:7400::1", "2001:db8:1::2", "2001:db8:2::2"];
        for (words, hops) in [("", four), ("-I", four), ("-6", six), ("-6 -I", six)] {
            let told = world.shell(&format!("traceroute -n -q 1 -w 3 -m 8 {words} {}", hops[2]));
            let seen: Vec<&str> =
                told.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
            assert_eq!(seen, hops, "traceroute {words}: {told}");
        }
    });
}

#[test]
fn the_mtu_of_the_path_is_found() {
    run("path::the_mtu_of_the_path_is_found", 1500, |world| {
        if !has("ping") {
            println!("SKIP: no ping");
            return;
        }
        let Some((_router, target)) = lay(world) else { return };
        if has("tracepath") {
            for (words, to) in [("-4", "10.2.0.2"), ("-6", "2001:db8:2::2")] {
                let told = world.shell(&format!("tracepath -n {words} -m 8 {to}"));
                assert!(told.contains("pmtu 1400") && told.contains("reached"), "{told}");
            }
        } else {
            println!("SKIP: no tracepath; datagrams are sent all the same");
        }
        // A program that may not fragment hears of it, and what may be fragmented arrives.
        let mut server = target.python_server(
            "
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind((\"::\", 9))
print(\"ready\", flush=True)
while True:
    data, peer = s.recvfrom(65536)
    s.sendto(b\"%d\" % len(data), peer)",
        );
        let answers = world.python(
            "
import socket, errno, time
for family, to, level, option, value in (
    (socket.AF_INET, \"10.2.0.2\", socket.IPPROTO_IP, 10, 2),
    (socket.AF_INET6, \"2001:db8:2::2\", socket.IPPROTO_IPV6, 23, 2)):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.setsockopt(level, option, value)
    s.settimeout(2)
    s.connect((to, 9))
    for attempt in range(20):
        try:
            s.send(bytes(1440))
            s.recv(100)
            print(\"arrived\")
            break
        except socket.timeout: pass
        except OSError as e:
            print(errno.errorcode[e.errno])
            break
    s.setsockopt(level, option, 0)
    for attempt in range(20):
        try:
            s.send(bytes(5000))
            print(s.recv(100).decode())
            break
        except socket.timeout: pass
        except OSError: pass",
        );
        assert_eq!(answers.split_whitespace().collect::<Vec<_>>(), ["EMSGSIZE", "5000", "EMSGSIZE", "5000"]);
        server.kill().unwrap();
        server.wait().unwrap();
    });
}
