//! The host: sockets that exist only as buffers, driven by the stack's effects.

use std::collections::HashMap;

use vpnkit_stack::{ConnectError, Data, Effect, Instant, Sockets, Stack, TcpId};

use crate::guest::pattern;
use crate::link::Random;

/// One connection of the host.
#[derive(Debug, Default)]
pub struct Connection {
    pub stream: u64,
    pub to_send: usize,
    pub sent: usize,
    pub received: usize,
    /// Resets the connection after this many bytes in both directions.
    pub reset_after: Option<usize>,
    /// Ends its side only after the guest did.
    pub close_last: bool,
    pub finished: bool,
    /// The guest will send no more.
    pub shutdown: bool,
    /// The stack said that it is over, and whether by a reset.
    pub closed: Option<bool>,
    pub gone: bool,
}

/// The sockets while the stack takes a frame: they take some of the data at once.
pub struct Direct<'a> {
    pub host: &'a mut Host,
    pub random: &'a mut Random,
    /// How often they take anything, in percent.
    pub percent: u64,
}

impl Sockets for Direct<'_> {
    fn write(&mut self, flow: TcpId, data: Data<'_>) -> usize {
        let Some(connection) = self.host.connections.get_mut(&flow) else { return 0 };
        let busy = connection.closed.is_some() || connection.gone || self.host.slow;
        if busy || !self.random.percent(self.percent) {
            return 0;
        }
        let some = 1 + self.random.below(data.len() as u64) as usize;
        let count = if self.random.percent(50) { data.len() } else { some.min(data.len()) };
        let mut bytes = vec![0; count];
        data.copy(&mut bytes);
        let right = (0..count).all(|at| bytes[at] == pattern(connection.stream, connection.received + at));
        if !right {
            self.host.wrong = Some(connection.received);
        }
        connection.received += count;
        count
    }
}

#[derive(Default)]
pub struct Host {
    /// Where a byte that was written at once was not what was sent.
    pub wrong: Option<usize>,
    pub connections: HashMap<TcpId, Connection>,
    /// By remote port: what a connection that the guest opens is to be like.
    pub expected: HashMap<u16, Connection>,
    pub slow: bool,
}

impl Host {
    pub fn take_effects(&mut self, stack: &mut Stack) -> Result<(), String> {
        if let Some(at) = self.wrong {
            return Err(format!("the host got a wrong byte at once, after {at}"));
        }
        while let Some(effect) = stack.pop_effect() {
            match effect {
                Effect::TcpConnect { flow, to } => {
                    let Some(connection) = self.expected.remove(&to.port()) else {
                        // A guest that heard neither of the connection nor of its reset tries again.
                        let stream = u64::from(to.port() - 1000) * 2;
                        if !self.connections.values().any(|other| other.stream == stream && other.gone) {
                            return Err("connected twice".into());
                        }
                        stack.tcp_connect_failed(flow, ConnectError::Refused);
                        continue;
                    };
                    self.connections.insert(flow, connection);
                    stack.tcp_connected(flow);
                }
                Effect::TcpReceived(_) | Effect::TcpRoom(_) | Effect::TcpKeepalive(_) => {}
                Effect::TcpShutdown(flow) => self.find(flow)?.shutdown = true,
                Effect::TcpClosed { flow, reset } => {
                    let connection = self.find(flow)?;
                    if connection.closed.replace(reset).is_some() {
                        return Err("closed twice".into());
                    }
                }
                other => return Err(format!("unexpected {other:?}")),
            }
        }
        Ok(())
    }

    fn find(&mut self, flow: TcpId) -> Result<&mut Connection, String> {
        self.connections.get_mut(&flow).ok_or_else(|| "an effect on an unknown flow".into())
    }

    /// Reads and writes on all connections. Errs when a byte is not what was sent.
    pub fn run_programs(
        &mut self,
        now: Instant,
        stack: &mut Stack,
        random: &mut Random,
    ) -> Result<(), String> {
        let mut flows: Vec<_> = self.connections.keys().copied().collect();
        flows.sort();
        for flow in flows {
            let connection = self.find(flow)?;
            if connection.closed.is_some() || connection.gone {
                continue;
            }
            let limit = |random: &mut Random| if self.slow { random.below(900) as usize } else { usize::MAX };
            let connection = self.connections.get_mut(&flow).expect("looked up above");
            if !self.slow || random.percent(30) {
                read(connection, flow, now, stack, limit(random))?;
            }
            if connection.reset_after.is_some_and(|after| connection.sent + connection.received >= after) {
                connection.gone = true;
                stack.tcp_aborted(now, flow);
                continue;
            }
            write(connection, flow, stack, limit(random));
            let may_finish = !connection.close_last || connection.shutdown;
            if connection.sent == connection.to_send && !connection.finished && may_finish {
                connection.finished = true;
                stack.tcp_finished(flow);
            }
        }
        Ok(())
    }
}

fn read(
    connection: &mut Connection,
    flow: TcpId,
    now: Instant,
    stack: &mut Stack,
    limit: usize,
) -> Result<(), String> {
    let (first, second) = stack.tcp_received(flow);
    let count = (first.len() + second.len()).min(limit);
    for (index, byte) in first.iter().chain(second).take(count).enumerate() {
        let at = connection.received + index;
        if *byte != pattern(connection.stream, at) {
            return Err(format!("the host got a wrong byte at {at}"));
        }
    }
    connection.received += count;
    if count > 0 {
        stack.tcp_consumed(now, flow, count);
    }
    Ok(())
}

fn write(connection: &mut Connection, flow: TcpId, stack: &mut Stack, limit: usize) {
    let want = stack.tcp_room(flow).min(connection.to_send - connection.sent).min(limit);
    if want == 0 {
        return;
    }
    let (first, second) = stack.tcp_buffer(flow, want);
    assert_eq!(first.len() + second.len(), want, "room was promised");
    for (index, byte) in first.iter_mut().chain(second).enumerate() {
        *byte = pattern(connection.stream + 1, connection.sent + index);
    }
    connection.sent += want;
    stack.tcp_filled(flow, want);
}
