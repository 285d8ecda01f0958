//! Redirects.

use oras_csi_testkit::scripted::Script;
use oras_csi_testkit::scripted::tricks::{answer, cut, redirect, redirect_to_host, status, status_with};

use super::{DONE, FAILED, FEW, REFUSED, Row, SECRET, Tls, always, check, large, once, row, sha256};

#[test]
fn redirects() {
    let to = |name, status, target: &'static str| {
        always(name, status, "/blobs/", redirect(target)).at_most_asked(4)
    };
    let refused = |name, target| to(name, FAILED, target).says("not ").storage_is_not_asked();
    // How deep it is already is in the address, so that asking again changes nothing.
    let deep = |name, depth: usize, status| {
        always(
            name,
            status,
            "/blobs/",
            answer(move |request, answer| {
                let (path, hop) = request.target.split_once("?hop=").unwrap_or((&request.target, "0"));
                match hop.parse::<usize>().unwrap() {
                    hop if hop == depth => answer,
                    hop => answer.status(302).header("Location", &format!("{path}?hop={}", hop + 1)).body(""),
                }
            }),
        )
    };
    let signed = |storage: &str| {
        let to = format!("{storage}/{}?X-Amz-Signature={SECRET}", sha256(&large()));
        Script::default().on("/blobs/", redirect(to))
    };
    let keeps_secret =
        |row: Row| row.check("the signature is not shown", |seen| !seen.words().contains(SECRET));
    let denied =
        || status(403, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>");
    let expires_in_the_middle = Script::default().once("/", cut(100_000)).once("/", denied());
    let cookie = |storage: &str| {
        let to = format!("{storage}/{}", sha256(&large()));
        Script::default().on(
            "/v2/",
            answer(move |request, answer| {
                let answer = answer.header("Set-Cookie", "session=secret; Path=/");
                if request.target.contains("/blobs/") && answer.status == 200 {
                    answer.status(307).header("Location", &to).body("")
                } else {
                    answer
                }
            }),
        )
    };
    let everything = |storage: &str| Script::default().on("/v2/", redirect_to_host(storage));
    check(
        FEW,
        vec![
            row("to another host, with a cookie and a token", DONE, cookie)
                .private()
                .storage_sees_no_secrets(),
            row("to another host with TLS", DONE, signed).tls(Tls::Both).private().storage_sees_no_secrets(),
            row("everything on another host", DONE, everything).storage_sees_no_secrets(),
            once(
                "to itself, relative",
                DONE,
                "/blobs/",
                answer(|request, answer| {
                    let name = request.target.rsplit('/').next().unwrap();
                    answer.status(308).header("Location", &format!("./{name}")).body("")
                }),
            ),
            deep("ten deep", 10, DONE),
            deep("eleven deep", 11, FAILED).says("redirects"),
            deep("in a ring", usize::MAX, FAILED).at_most_asked(40),
            row("to another host, and from there to nowhere", FAILED, |storage| {
                Script::default().on("/blobs/", redirect_to_host(storage))
            })
            .storage(Script::default().on("/", redirect("http://0.0.0.0:1/")))
            .says("not dialed"),
            refused("to a file", "file:///etc/passwd"),
            refused("to ftp", "ftp://192.0.2.1/blob"),
            refused("to gopher", "gopher://192.0.2.1/blob"),
            refused("to data", "data:text/plain,hello"),
            refused("to the metadata address", "http://169.254.169.254/latest/meta-data/"),
            refused("to the metadata address, mapped", "http://[::ffff:169.254.169.254]/latest/"),
            refused("to the metadata address as one number", "http://2852039166/latest/"),
            refused("to the metadata address of AWS in IPv6", "http://[fd00:ec2::254]/latest/"),
            refused("to a name of this machine", "http://localhost:1/"),
            always(
                "to a name of this machine with a dot",
                FAILED,
                "/blobs/",
                redirect("http://LOCALHOST.:1/"),
            ),
            refused("to nowhere", "http://0.0.0.0:1/"),
            refused("to a link-local address", "http://[fe80::1]/"),
            refused("to an address with a user", "http://user:password@127.0.0.2:1/"),
            to("to something that is no address", REFUSED, "http://[::1"),
            to("to no host", REFUSED, "http://"),
            // The address is refused before it is dialled, and is shown without the codes.
            to("to an address with terminal codes", FAILED, "http://169.254.169.254/\u{9b}31m\u{202e}"),
            always(
                "the manifest at the metadata address",
                FAILED,
                "/manifests/",
                redirect("http://169.254.169.254/"),
            )
            .at_most_asked(4),
            always("without a Location", REFUSED, "/blobs/", status(307, "")),
            always(
                "two Locations",
                FAILED,
                "/blobs/",
                answer(|_, answer| {
                    answer
                        .status(307)
                        .header("Location", "http://169.254.169.254/")
                        .header("Location", "/x")
                        .body("")
                }),
            ),
            always("300 with choices", REFUSED, "/blobs/", status_with(300, "Location", "/x")),
            always("304 that was not asked for", REFUSED, "/blobs/", status(304, "")),
            row("from https to http", FAILED, signed).tls(Tls::Registry).storage_is_not_asked().says("https"),
            keeps_secret(row("presigned", DONE, signed)),
            keeps_secret(
                row("presigned, expired the first time", DONE, signed)
                    .storage(Script::default().once("/", denied())),
            ),
            keeps_secret(
                row("presigned, expires in the middle", DONE, signed).storage(expires_in_the_middle).stored(),
            ),
            keeps_secret(
                row("presigned, expired always", FAILED, signed).storage(Script::default().on("/", denied())),
            )
            .at_most_asked(30),
        ],
    );
}
