//! Lists of referrers from registries that do not have the API, or that answer as if they had it.

use rstest::rstest;

use super::*;

fn subject() -> Digest {
    Digest::sha256_of(&manifest_bytes())
}

fn index(seeds: &[&str]) -> Vec<u8> {
    let entry = |seed: &&str| {
        let digest = Digest::sha256_of(seed.as_bytes());
        format!(r#"{{"mediaType":"{}","digest":"{digest}","size":2}}"#, media::OCI_MANIFEST)
    };
    let entries = seeds.iter().map(entry).collect::<Vec<_>>().join(",");
    format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{entries}]}}"#, media::OCI_INDEX)
        .into_bytes()
}

fn index_answer(seeds: &[&str]) -> Vec<Part> {
    answer(200, &[("Content-Type", media::OCI_INDEX)], &index(seeds))
}

fn page() -> Vec<Part> {
    answer(200, &[("Content-Type", "text/html; charset=utf-8")], b"<!DOCTYPE html><title>registry</title>")
}

/// Lists the referrers of `subject` with the answers of the API and of the referrers tag.
async fn list(subject: &Digest, api: Vec<Part>, tag: Vec<Part>) -> Result<Vec<Digest>, RegistryError> {
    let server =
        Server::start(
            move |request| {
                if request.target.contains("/referrers/") { api.clone() } else { tag.clone() }
            },
        )
        .await;
    let entries = client(&server).referrers(&pinned(&server, subject)).await?;
    Ok(entries.iter().map(|entry| entry.descriptor().digest().clone()).collect())
}

#[rstest]
#[case::not_found(answer(404, &[], b""))]
#[case::bad_request(answer(400, &[], b""))]
#[case::not_allowed(answer(405, &[], b""))]
#[case::not_implemented(answer(501, &[], b""))]
#[case::a_page(page())]
#[case::a_page_called_json(answer(200, &[("Content-Type", "application/json")], b"<html>"))]
#[case::another_document(answer(200, &[("Content-Type", "application/json")], b"{\"schemaVersion\":1}"))]
#[case::the_subject(manifest_answer())]
#[tokio::test]
async fn the_tag_is_read_if_the_registry_has_no_referrers_api(#[case] api: Vec<Part>) {
    let found = list(&subject(), api.clone(), index_answer(&["patch"])).await.unwrap();
    assert_eq!(found, [Digest::sha256_of(b"patch")]);
    assert_eq!(list(&subject(), api, answer(404, &[], b"")).await.unwrap(), []);
}

#[rstest]
#[case::the_subject(manifest_answer())]
#[case::a_page(page())]
#[case::another_document(answer(200, &[("Content-Type", "application/json")], b"[]"))]
#[case::nothing(answer(200, &[], b""))]
#[tokio::test]
async fn a_referrers_tag_that_names_no_index_has_no_referrers(#[case] tag: Vec<Part>) {
    for api in [answer(404, &[], b""), page()] {
        assert_eq!(list(&subject(), api, tag.clone()).await.unwrap(), []);
    }
}

/// Registries ignore an unknown path below a repository and return the manifest. If that is an index, its manifests are
/// those of its platforms.
#[tokio::test]
async fn the_platforms_of_an_index_are_not_its_referrers() {
    let subject = Digest::sha256_of(&index(&["amd64", "arm64"]));
    let same = index_answer(&["amd64", "arm64"]);
    assert_eq!(list(&subject, answer(404, &[], b""), same).await.unwrap(), []);
}

#[rstest]
#[case::refused(answer(403, &[], b""), answer(404, &[], b""), Kind::Refused)]
#[case::failed(answer(500, &[], b""), index_answer(&[]), Kind::Unavailable)]
#[case::broken_index(answer(200, &[("Content-Type", media::OCI_INDEX)], b"{"), index_answer(&[]), Kind::Invalid)]
#[case::refused_tag(answer(404, &[], b""), answer(403, &[], b""), Kind::Refused)]
#[case::broken_tag(answer(404, &[], b""), answer(500, &[], b""), Kind::Unavailable)]
#[case::broken_tag_index(
    answer(404, &[], b""), answer(200, &[("Content-Type", media::OCI_INDEX)], b"{"), Kind::Invalid)]
#[tokio::test]
async fn other_answers_are_errors(#[case] api: Vec<Part>, #[case] tag: Vec<Part>, #[case] kind: Kind) {
    let error = list(&subject(), api, tag).await.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
}

/// RFC 8288, section 3: a header can have several links, and names and relation types are not case-sensitive.
#[rstest]
#[case::alone(&["</v2/team/app/referrers/SUBJECT?last=1>; rel=\"next\""])]
#[case::upper_case(&["</v2/team/app/referrers/SUBJECT?last=1>; Rel=Next"])]
#[case::blanks(&["< /v2/team/app/referrers/SUBJECT?last=1 > ; title=\"a, <b>; rel=prev\" ; rel = next"])]
#[case::several_types(&["</v2/team/app/referrers/SUBJECT?last=1>; rel=\"last NEXT\""])]
#[case::second(&["</v2/team/app>; rel=\"first\", </v2/team/app/referrers/SUBJECT?last=1>; rel=\"next\""])]
#[case::second_without_type(&["<https://other.example/help,me>, </v2/team/app/referrers/SUBJECT?last=1>;rel=next"])]
#[case::first(&["</v2/team/app/referrers/SUBJECT?last=1>; rel=next,</x>; rel=prev"])]
#[case::second_header(&["<https://other.example/>; rel=\"help\"", "</v2/team/app/referrers/SUBJECT?last=1>; rel=next"])]
#[tokio::test]
async fn the_next_page_is_found_among_the_links(#[case] links: &'static [&'static str]) {
    let server = Server::start(move |request| {
        if request.target.ends_with("?last=1") {
            return index_answer(&["second"]);
        }
        let links: Vec<_> =
            links.iter().map(|link| link.replace("SUBJECT", &subject().to_string())).collect();
        let mut headers: Vec<_> = links.iter().map(|link| ("Link", link.as_str())).collect();
        headers.push(("Content-Type", media::OCI_INDEX));
        answer(200, &headers, &index(&["first"]))
    })
    .await;
    let entries = client(&server).referrers(&pinned(&server, &subject())).await.unwrap();
    assert_eq!(entries.len(), 2);
}

#[rstest]
#[case::another_type(&["</v2/team/app/referrers/x>; rel=\"nextish\", </y>; rel=\"prev\"; title=\"rel=next\""], Ok(1))]
#[case::another_host(&["<http://other.example/v2/team/app/referrers/x>; rel=next"], Err(Kind::Untruthful))]
#[case::another_path(&["</v2/team/app/referrers/x?last=1>; rel=next"], Err(Kind::Untruthful))]
#[case::no_link(&["next"], Err(Kind::Untruthful))]
#[case::no_end(&["</v2/team/app"], Err(Kind::Untruthful))]
#[tokio::test]
async fn another_link_is_not_followed(
    #[case] links: &'static [&'static str],
    #[case] expected: Result<usize, Kind>,
) {
    let server = Server::start(move |_| {
        let mut headers: Vec<_> = links.iter().map(|link| ("Link", *link)).collect();
        headers.push(("Content-Type", media::OCI_INDEX));
        answer(200, &headers, &index(&["first"]))
    })
    .await;
    let found = client(&server).referrers(&pinned(&server, &subject())).await;
    assert_eq!(found.map(|entries| entries.len()).map_err(|error| error.kind()), expected);
    assert_eq!(server.lines().len(), 1);
}
