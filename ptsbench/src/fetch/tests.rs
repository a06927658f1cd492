//! Fetching from a local server that answers as the hub does, and can cut, corrupt, redirect, refuse and lie.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::*;

const REPOSITORY: &str = "owner/net";
const FILE: &str = "model.safetensors";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How a server misbehaves; by default not at all.
#[derive(Debug, Clone, Default)]
struct Manners {
    /// The status of every answer about the file, where it is not 200.
    head: Option<&'static str>,
    /// The status of every answer with the file itself.
    get: Option<&'static str>,
    /// Further lines in the head of those answers.
    lines: &'static str,
    /// Bytes after which each answer with the file breaks off; the last one holds for all that follow.
    cuts: Vec<usize>,
    /// Refuse requests for parts with 416.
    no_parts: bool,
    /// Send the whole file, whatever part was asked for.
    whole: bool,
    /// Flip a bit of the file.
    corrupt: bool,
    /// Announce so many bytes more (or less) than the file has.
    lie: i64,
    /// Tell no digest.
    no_digest: bool,
    /// Tell another digest.
    wrong_digest: bool,
    /// Send the client for the file to this address.
    redirect: Option<String>,
    /// Take requests and never answer.
    silent: bool,
}

/// A request as the server saw it.
#[derive(Debug, Clone)]
struct Seen {
    method: String,
    range: Option<String>,
    authorized: bool,
}

struct Server {
    address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    manners: Arc<Mutex<Manners>>,
}

/// Bytes without a period that a shifted copy could hide in.
fn content() -> Vec<u8> {
    (0..200_003u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl Server {
    fn start(manners: Manners) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            address: format!("http://{}", listener.local_addr().unwrap()),
            seen: Arc::default(),
            manners: Arc::new(Mutex::new(manners)),
        };
        let (seen, manners) = (server.seen.clone(), server.manners.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, manners) = (seen.clone(), manners.clone());
                // A client that goes away is not the server's failure.
                thread::spawn(move || answer(stream.ok()?, &seen, &manners));
            }
        });
        server
    }

    fn behave(&self, manners: Manners) {
        *self.manners.lock().unwrap() = manners;
    }

    fn count(&self, method: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.method == method).count()
    }

    fn ranges(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter_map(|seen| seen.range.clone()).collect()
    }
}

fn answer(stream: TcpStream, seen: &Mutex<Vec<Seen>>, manners: &Mutex<Manners>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let method = first.split(' ').next()?.to_owned();
    let (mut range, mut authorized, mut length) = (None, false, 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end().to_owned();
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => range = Some(value.to_owned()),
            "authorization" => authorized = true,
            "content-length" => length = value.parse().ok()?,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    seen.lock().unwrap().push(Seen {
        method: method.clone(),
        range: range.clone(),
        authorized,
    });
    // Taken out of the lock: a silent server must not keep the others waiting.
    let manners = {
        let mut shared = manners.lock().unwrap();
        let now = shared.clone();
        if method == "GET" && shared.cuts.len() > 1 {
            shared.cuts.remove(0);
        }
        now
    };
    if manners.silent {
        thread::sleep(Duration::from_secs(20));
        return None;
    }
    let mut content = content();
    let announced = (content.len() as i64 + manners.lie).max(0);
    let digest = match (manners.no_digest, manners.wrong_digest) {
        (true, _) => "\"opaque\"".to_owned(),
        (_, true) => "0".repeat(64),
        _ => hex(&content),
    };
    let mut stream = stream;
    match method.as_str() {
        "HEAD" => {
            let status = manners.head.unwrap_or("200 OK");
            write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Length: 0\r\nX-Linked-Size: {announced}\r\nX-Linked-Etag: \"{}\"\r\nETag: \"x\"\r\nX-Repo-Commit: {COMMIT}\r\n{}Connection: close\r\n\r\n",
                digest.trim_matches('"'),
                manners.lines,
            )
        }
        "POST" => {
            let body = format!(
                r#"[{{"type":"file","oid":"0","size":{},"path":"{FILE}"}}]"#,
                announced
            );
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
        }
        _ => {
            if let Some(address) = &manners.redirect {
                return write!(
                    stream,
                    "HTTP/1.1 302 Found\r\nLocation: {address}/elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
                .ok();
            }
            let refused = (manners.no_parts && range.is_some()).then_some("416 Range Not Satisfiable");
            if let Some(status) = refused.or(manners.get) {
                return write!(
                    stream,
                    "HTTP/1.1 {status}\r\n{}Content-Length: 0\r\nConnection: close\r\n\r\n",
                    manners.lines
                )
                .ok();
            }
            if manners.corrupt {
                content[100_000] ^= 1;
            }
            let part = match (&range, manners.whole) {
                (Some(range), false) => {
                    let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
                    let end = end.parse::<usize>().ok()?.min(content.len() - 1);
                    content.get(start.parse::<usize>().ok()?..=end)?
                }
                _ => &content[..],
            };
            let status = if range.is_some() && !manners.whole {
                "206 Partial Content"
            } else {
                "200 OK"
            };
            let sent = manners.cuts.first().copied().unwrap_or(usize::MAX);
            write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                part.len()
            )
            .ok()?;
            stream.write_all(&part[..sent.min(part.len())])
        }
    }
    .ok()
}

/// A cache, and a way to fetch into it.
struct Desk {
    cache: tempfile::TempDir,
}

impl Desk {
    fn new() -> Desk {
        Desk {
            cache: tempfile::tempdir().unwrap(),
        }
    }

    fn settings(&self, server: &Server) -> Settings {
        Settings {
            cache: self.cache.path().to_owned(),
            offline: false,
            endpoint: Some(server.address.clone()),
            attempts: 3,
            pause: Duration::from_millis(1),
            repeats: 0,
            patience_s: 10,
        }
    }

    fn fetch(&self, server: &Server) -> Result<Fetched, FetchError> {
        fetch(
            wanted(Digest::Unknown),
            &self.settings(server),
            &mut |_, _| {},
        )
    }

    /// The files in the cache and their sizes.
    fn files(&self) -> Vec<(String, u64)> {
        let mut files = Vec::new();
        let mut folders = vec![self.cache.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    files.push((name, entry.metadata().unwrap().len()));
                }
            }
        }
        files.sort();
        files
    }
}

fn wanted(sha256: Digest) -> Wanted<'static> {
    Wanted {
        repository: REPOSITORY,
        revision: "main",
        file: FILE,
        sha256,
    }
}

#[test]
fn a_file_arrives_whole_and_once() {
    let (server, desk) = (Server::start(Manners::default()), Desk::new());
    let mut told = Vec::new();
    let first = fetch(
        wanted(Digest::Unknown),
        &desk.settings(&server),
        &mut |done, all| {
            told.push((done, all));
        },
    )
    .unwrap();
    let size = content().len() as u64;
    assert_eq!(std::fs::read(&first.path).unwrap(), content());
    assert_eq!(first.sha256, hex(&content()));
    assert!(first.verified);
    assert_eq!((first.transferred, first.resumed), (size, 0));
    assert_eq!(told.first(), Some(&(0, size)));
    assert_eq!(told.last(), Some(&(size, size)));
    assert!(told.is_sorted());
    let names: Vec<String> = desk.files().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [FILE.to_owned(), format!("{FILE}.sha256")]);

    let requests = server.seen.lock().unwrap().len();
    let again = desk.fetch(&server).unwrap();
    assert_eq!((again.path, again.transferred), (first.path, 0));
    assert_eq!(server.seen.lock().unwrap().len(), requests);
}

#[test]
fn a_cut_transfer_goes_on_where_it_stopped() {
    let cuts = vec![50_000, 60_000, usize::MAX];
    let manners = Manners {
        cuts,
        ..Manners::default()
    };
    let (server, desk) = (Server::start(manners), Desk::new());
    let fetched = desk.fetch(&server).unwrap();
    assert_eq!(std::fs::read(&fetched.path).unwrap(), content());
    assert_eq!(fetched.transferred, content().len() as u64);
    assert_eq!(
        server.ranges(),
        ["bytes=50000-200002", "bytes=110000-200002"]
    );
}

#[test]
fn the_next_command_goes_on_too() {
    let manners = Manners {
        cuts: vec![70_000, 0],
        ..Manners::default()
    };
    let (server, desk) = (Server::start(manners), Desk::new());
    let error = desk.fetch(&server).unwrap_err();
    let FetchError::BrokeOff { done, size, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((done, size), (70_000, content().len() as u64));
    assert!(desk.files()[0].0.ends_with(".partial") && desk.files()[0].1 == 70_000);
    server.behave(Manners::default());
    let fetched = desk.fetch(&server).unwrap();
    assert_eq!((fetched.resumed, fetched.transferred), (70_000, 130_003));
    assert_eq!(std::fs::read(&fetched.path).unwrap(), content());
}

#[test]
fn a_server_that_knows_no_parts_costs_a_new_start() {
    for manners in [
        Manners {
            whole: true,
            ..Manners::default()
        },
        Manners {
            no_parts: true,
            ..Manners::default()
        },
    ] {
        let cut = Manners {
            cuts: vec![70_000, 0],
            ..Manners::default()
        };
        let (server, desk) = (Server::start(cut), Desk::new());
        desk.fetch(&server).unwrap_err();
        server.behave(manners.clone());
        let fetched = desk.fetch(&server).unwrap();
        assert_eq!(
            std::fs::read(&fetched.path).unwrap(),
            content(),
            "{manners:?}"
        );
        // What was here is sent again, and passed over.
        assert_eq!(fetched.transferred, content().len() as u64);
        assert_eq!(fetched.resumed, 70_000);
    }
}

#[test]
fn a_server_that_cuts_and_knows_no_parts_is_given_up() {
    // At three fifths and at half: two halves are the announced length, and not the file.
    for cut in [120_000, 100_002] {
        for (whole, no_parts) in [(true, false), (false, true)] {
            let manners = Manners {
                cuts: vec![cut],
                whole,
                no_parts,
                ..Manners::default()
            };
            let (server, desk) = (Server::start(manners), Desk::new());
            let error = desk.fetch(&server).unwrap_err();
            let FetchError::BrokeOff { done, tries, .. } = error else {
                panic!("{error}")
            };
            assert_eq!((done, tries), (cut as u64, 3));
            assert!(server.count("GET") <= 4, "{}", server.count("GET"));
            let error = error.to_string();
            assert!(
                error.contains("cannot go on with a transfer") && error.contains("--weights"),
                "{error}"
            );
            // What came is used once the server, or another, sends parts or all of it.
            for manners in [
                Manners {
                    whole,
                    no_parts,
                    ..Manners::default()
                },
                Manners::default(),
            ] {
                server.behave(manners);
                let fetched = desk.fetch(&server).unwrap();
                assert_eq!(std::fs::read(&fetched.path).unwrap(), content());
                std::fs::remove_file(&fetched.path).unwrap();
                let partial = wanted(Digest::Unknown).path(desk.cache.path());
                let digest = &hex(&content())[..16];
                let name = format!("{FILE}.{digest}.partial");
                std::fs::write(partial.with_file_name(name), &content()[..cut]).unwrap();
            }
        }
    }
}

#[test]
fn next_to_nothing_is_no_progress_and_pauses_grow() {
    let manners = Manners {
        cuts: vec![100_000, 1],
        ..Manners::default()
    };
    let (server, desk) = (Server::start(manners), Desk::new());
    let settings = Settings {
        attempts: 4,
        pause: Duration::from_millis(50),
        ..desk.settings(&server)
    };
    let start = Instant::now();
    let error = fetch(wanted(Digest::Unknown), &settings, &mut |_, _| {}).unwrap_err();
    let FetchError::BrokeOff { done, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(done, 100_004);
    assert_eq!(server.count("GET"), 5);
    // After the first try 50 ms, then 100, 200 and 400.
    assert!(start.elapsed() >= Duration::from_millis(750));
}

#[test]
fn damaged_bytes_are_never_named() {
    let manners = Manners {
        corrupt: true,
        ..Manners::default()
    };
    let (server, desk) = (Server::start(manners), Desk::new());
    let error = desk.fetch(&server).unwrap_err();
    assert!(
        matches!(&error, FetchError::Corrupt { expected, .. } if *expected == hex(&content())),
        "{error}"
    );
    assert_eq!(desk.files(), []);
    server.behave(Manners::default());
    assert_eq!(desk.fetch(&server).unwrap().resumed, 0);
}

#[test]
fn the_catalogs_digest_stands_above_the_hubs() {
    let whole: &'static str = hex(&content()).leak();
    let replaced = Manners {
        wrong_digest: true,
        ..Manners::default()
    };
    let (server, desk) = (Server::start(replaced), Desk::new());
    let fetch_known = |sha256| fetch(wanted(sha256), &desk.settings(&server), &mut |_, _| {});
    for known in [Digest::Whole(whole), Digest::Begins(&whole[..8])] {
        let error = fetch_known(known).unwrap_err();
        assert!(matches!(error, FetchError::Replaced { .. }), "{error}");
    }
    assert_eq!(server.count("GET"), 0);
    // A mirror that tells no digest: the catalog's decides, and without one nobody vouches for the file.
    server.behave(Manners {
        no_digest: true,
        corrupt: true,
        ..Manners::default()
    });
    let error = fetch_known(Digest::Whole(whole)).unwrap_err();
    assert!(matches!(error, FetchError::Corrupt { .. }), "{error}");
    server.behave(Manners {
        no_digest: true,
        ..Manners::default()
    });
    assert!(!fetch_known(Digest::Unknown).unwrap().verified);
}

#[test]
fn refusals_are_told_apart() {
    let desk = Desk::new();
    for (status, lines, expected) in [
        ("401 Unauthorized", "", "set HF_TOKEN"),
        ("403 Forbidden", "", "accept its terms"),
        ("404 Not Found", "", "check the spelling"),
        (
            "429 Too Many Requests",
            "Retry-After: 7\r\n",
            "in 7 seconds",
        ),
        ("500 Internal Server Error", "", "HTTP status 500"),
    ] {
        for at_head in [true, false] {
            let refusal = Some(status);
            let (head, get) = if at_head {
                (refusal, None)
            } else {
                (None, refusal)
            };
            let manners = Manners {
                head,
                get,
                lines,
                ..Manners::default()
            };
            let error = desk.fetch(&Server::start(manners)).unwrap_err().to_string();
            assert!(error.contains(expected), "{status}, {at_head}: {error}");
            assert!(
                error.contains(REPOSITORY) && error.lines().count() == 1,
                "{error}"
            );
        }
    }
}

#[test]
fn a_busy_server_is_asked_again() {
    let manners = Manners {
        get: Some("503 Service Unavailable"),
        ..Manners::default()
    };
    let (server, desk) = (Server::start(manners), Desk::new());
    let settings = Settings {
        repeats: 2,
        ..desk.settings(&server)
    };
    fetch(wanted(Digest::Unknown), &settings, &mut |_, _| {}).unwrap_err();
    assert_eq!(server.count("GET"), 3);
}

#[test]
fn a_redirect_is_followed_and_the_token_stays_behind() {
    let elsewhere = Server::start(Manners::default());
    let redirect = Some(elsewhere.address.clone());
    let (server, desk) = (
        Server::start(Manners {
            redirect,
            ..Manners::default()
        }),
        Desk::new(),
    );
    let fetched = desk.fetch(&server).unwrap();
    assert_eq!(std::fs::read(&fetched.path).unwrap(), content());
    assert_eq!(elsewhere.count("GET"), 1);
    // The token comes from the environment; where the tests run with one, it must reach the hub alone.
    let token = std::env::var_os("HF_TOKEN").is_some_and(|token| !token.is_empty());
    let authorized = |server: &Server| {
        server
            .seen
            .lock()
            .unwrap()
            .iter()
            .any(|seen| seen.authorized)
    };
    assert!(authorized(&server) || !token);
    assert!(!authorized(&elsewhere));
}

#[test]
fn lies_about_the_length_end_in_an_error() {
    for (lie, what) in [(1_000, "broke off"), (-1_000, "more than it announced")] {
        let manners = Manners {
            lie,
            ..Manners::default()
        };
        let (server, desk) = (Server::start(manners), Desk::new());
        let error = desk.fetch(&server).unwrap_err();
        assert!(
            matches!(error, FetchError::BrokeOff { .. }),
            "{lie}: {error}"
        );
        assert!(error.to_string().contains(what), "{lie}: {error}");
        assert!(
            desk.files()
                .iter()
                .all(|(name, _)| name.ends_with(".partial"))
        );
    }
}

#[test]
fn silence_ends() {
    let manners = Manners {
        silent: true,
        ..Manners::default()
    };
    let (server, desk) = (Server::start(manners), Desk::new());
    let settings = Settings {
        patience_s: 1,
        ..desk.settings(&server)
    };
    let error = fetch(wanted(Digest::Unknown), &settings, &mut |_, _| {}).unwrap_err();
    assert!(
        error.to_string().contains("no answer for 1 seconds"),
        "{error}"
    );
}

#[test]
fn nobody_there_is_said() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let desk = Desk::new();
    let mut settings = desk.settings(&Server::start(Manners::default()));
    settings.endpoint = Some(address);
    let error = fetch(wanted(Digest::Unknown), &settings, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, FetchError::Server { .. }), "{error}");
    settings.endpoint = Some("no address".to_owned());
    let error = fetch(wanted(Digest::Unknown), &settings, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, FetchError::Server { .. }), "{error}");
}

#[test]
fn offline_takes_what_is_there_and_asks_nobody() {
    let (server, desk) = (Server::start(Manners::default()), Desk::new());
    let settings = Settings {
        offline: true,
        ..desk.settings(&server)
    };
    let offline = || fetch(wanted(Digest::Unknown), &settings, &mut |_, _| {});
    assert!(matches!(offline(), Err(FetchError::Offline(_))));
    assert!(server.seen.lock().unwrap().is_empty());
    let fetched = desk.fetch(&server).unwrap();
    let requests = server.seen.lock().unwrap().len();
    assert_eq!(offline().unwrap().path, fetched.path);
    assert_eq!(server.seen.lock().unwrap().len(), requests);
}

#[test]
fn a_changed_file_in_the_cache_is_noticed() {
    let (server, desk) = (Server::start(Manners::default()), Desk::new());
    let fetched = desk.fetch(&server).unwrap();
    let mut bytes = content();
    bytes[7] ^= 1;
    std::fs::write(&fetched.path, bytes).unwrap();
    let error = desk.fetch(&server).unwrap_err();
    assert!(matches!(error, FetchError::Changed { .. }), "{error}");
}

#[test]
fn two_processes_do_not_write_one_file() {
    let cut = Manners {
        cuts: vec![70_000, 0],
        ..Manners::default()
    };
    let (server, desk) = (Server::start(cut), Desk::new());
    desk.fetch(&server).unwrap_err();
    let folder = wanted(Digest::Unknown).path(desk.cache.path());
    let partial = folder.parent().unwrap().join(&desk.files()[0].0);
    let other = std::fs::File::options().write(true).open(partial).unwrap();
    other.lock().unwrap();
    let error = desk.fetch(&server).unwrap_err();
    assert!(matches!(error, FetchError::Busy(_)), "{error}");
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let (server, desk) = (Server::start(Manners::default()), Desk::new());
    let blocked = desk.cache.path().join("blocked");
    std::fs::write(&blocked, "a file").unwrap();
    let settings = Settings {
        cache: blocked,
        ..desk.settings(&server)
    };
    let error = fetch(wanted(Digest::Unknown), &settings, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, FetchError::Disk { .. }), "{error}");
}
