//! Debian's and busybox' DHCP clients.

use crate::world::{has, run};

#[test]
fn udhcpc_is_told_everything() {
    run("dhcp::udhcpc_is_told_everything", 1400, |world| {
        if !has("udhcpc") {
            println!("SKIP: no udhcpc");
            return;
        }
        let told = world.shell(
            "printf '#!/bin/sh\\n[ $1 = bound ] && env; exit 0\\n' > /tmp/vpnkit-udhcpc-$$ && chmod 755 /tmp/vpnkit-udhcpc-$$
             ip address flush dev tap0
             udhcpc -i tap0 -f -q -n -t 10 -T 1 -O search -O mtu -O ntpsrv -O broadcast -s /tmp/vpnkit-udhcpc-$$ 2>&1
             status=$?; rm /tmp/vpnkit-udhcpc-$$; exit $status",
        );
        for line in [
            "ip=192.168.65.3",
            "mask=24",
            "subnet=255.255.255.0",
            "router=192.168.65.1",
            "dns=192.168.65.1",
            "broadcast=192.168.65.255",
            "mtu=1400",
            "ntpsrv=192.168.65.1",
            "domain=fleet.example",
            "search=harbour.example",
            "serverid=192.168.65.1",
        ] {
            assert!(told.lines().any(|told| told.trim() == line), "{line} is not in {told}");
        }
    });
}

#[test]
fn dhclient_gets_leases_of_both_families() {
    run("dhcp::dhclient_gets_leases_of_both_families", 1400, |world| {
        if !has("dhclient") {
            println!("SKIP: no dhclient");
            return;
        }
        let told = world.shell(
            "d=$(mktemp -d) && printf '#!/bin/sh\\nenv >> %s/told\\nexit 0\\n' $d > $d/script && chmod 755 $d $d/script
             ip address flush dev tap0 scope global
             printf 'request subnet-mask, broadcast-address, routers, domain-name, domain-search, domain-name-servers, ntp-servers, interface-mtu;\\nalso request dhcp6.name-servers, dhcp6.domain-search;\\n' > $d/conf
             timeout 60 dhclient -4 -1 -d -cf $d/conf -sf $d/script -lf $d/l4 -pf $d/p4 tap0 > $d/log4 2>&1 &
             for i in $(seq 200); do grep -q reason=BOUND $d/told 2>/dev/null && break; sleep 0.1; done
             kill $! 2>/dev/null
             for i in $(seq 100); do ip -6 -o address show dev tap0 scope link -tentative | grep -q fe80 && break; sleep 0.05; done
             timeout 60 dhclient -6 -1 -d -cf $d/conf -sf $d/script -lf $d/l6 -pf $d/p6 tap0 > $d/log6 2>&1 &
             for i in $(seq 200); do grep -q reason=BOUND6 $d/told 2>/dev/null && break; sleep 0.1; done
             kill $! 2>/dev/null
             cat $d/told $d/log4 $d/log6; rm -r $d",
        );
        for line in [
            "new_ip_address=192.168.65.3",
            "new_subnet_mask=255.255.255.0",
            "new_routers=192.168.65.1",
            "new_broadcast_address=192.168.65.255",
            "new_interface_mtu=1400",
            "new_ntp_servers=192.168.65.1",
            "new_domain_name=fleet.example",
            "new_domain_name_servers=192.168.65.1",
            "new_ip6_address=fd76:706e:6b69:7400::3",
            "new_dhcp6_name_servers=fd76:706e:6b69:7400::1",
        ] {
            assert!(told.lines().any(|told| told.trim() == line), "{line} is not in {told}");
        }
        assert!(told.contains("new_dhcp6_domain_search=fleet.example. harbour.example."), "{told}");
    });
}
