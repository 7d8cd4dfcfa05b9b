//! Listening sockets that systemd passes when it starts usher (`LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`): they stay
//! open, and connections wait in them, while usher restarts.

use std::io;
use std::net::TcpListener;

use listenfd::ListenFd;

/// The sockets that were passed.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// For clients.
    pub(super) main: Option<TcpListener>,
    /// For the admin API.
    pub(super) admin: Option<TcpListener>,
}

/// What a passed socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Main,
    Admin,
}

/// Takes what was passed to this process, if anything was. It takes the variables away, which nobody else may be
/// reading meanwhile: so it has to come before any thread is started.
///
/// # Errors
/// If there are other sockets than usher has a use for.
pub(super) fn passed() -> io::Result<Passed> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut sockets = ListenFd::from_env();
    let uses = uses(sockets.len(), &names).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let mut passed = Passed::default();
    for (number, what) in uses.into_iter().enumerate() {
        let socket = sockets.take_tcp_listener(number)?;
        match what {
            Use::Main => passed.main = socket,
            Use::Admin => passed.admin = socket,
        }
    }
    Ok(passed)
}

/// What so many sockets with these names (`a:b`) are for. Those named `main` and `admin` are what they say; of the
/// others, the first that is missing.
fn uses(count: usize, names: &str) -> Result<Vec<Use>, String> {
    if count > 2 {
        return Err(format!(
            "{count} sockets were passed (LISTEN_FDS), and usher has a use for two, main and admin: one ListenStream= \
             each, an IPv6 one for IPv4 as well"
        ));
    }
    let named = |name: &str| match name {
        "main" => Some(Use::Main),
        "admin" => Some(Use::Admin),
        _ => None,
    };
    let mut uses: Vec<Option<Use>> = names.split(':').map(named).chain(std::iter::repeat(None)).take(count).collect();
    if count == 2 && uses[0].is_some() && uses[0] == uses[1] {
        return Err(format!("two sockets of one name were passed (LISTEN_FDNAMES={names}): name them main and admin"));
    }
    for number in 0..count {
        if uses[number].is_none() {
            let main = uses.contains(&Some(Use::Main));
            uses[number] = Some(if main { Use::Admin } else { Use::Main });
        }
    }
    Ok(uses.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_socket_is_for_and_else_the_order() {
        use Use::{Admin, Main};
        for (count, names, expected) in [
            (0, "", vec![]),
            (1, "", vec![Main]),
            (1, "usher.socket", vec![Main]),
            (1, "admin", vec![Admin]),
            (2, "usher.socket:usher.socket", vec![Main, Admin]),
            (2, "admin:main", vec![Admin, Main]),
            (2, "admin:other", vec![Admin, Main]),
            (2, "other:main", vec![Admin, Main]),
            (2, "other", vec![Main, Admin]),
        ] {
            assert_eq!(uses(count, names).unwrap(), expected, "{count} {names:?}");
        }
        assert!(uses(3, "").unwrap_err().contains("3 sockets were passed"));
        assert!(uses(2, "main:main").unwrap_err().contains("name them main and admin"));
    }
}
