use proptest::prelude::*;
use rstest::rstest;

use super::*;

const A: &str = "ghcr.io/acme/model@sha256:4fe6f3e48881647c22bea5c5ca02872b6f5d9ff75931a692e00c50f59de3f429";
const B: &str =
    "kind-registry:5000/java-app@sha256:514fd93c4f9d875fc5c98532f2399a740d4e02a8eefe4a71155e8d92c69e14fb";

fn unknown(_: &str) -> bool {
    false
}

fn json(template: &str) -> String {
    template.replace("$A", A).replace("$B", B)
}

#[test]
fn parses_and_pins_the_example_of_the_documentation() {
    let yaml = r#"
- add: ghcr.io/acme/model:v1
  path: model
  include: ["*.safetensors", "config/**"]
- add: ghcr.io/acme/tokenizer:v3
  path: tokenizer
- remove: model/optimizer.pt
- overlay: ghcr.io/acme/hotfix:2
"#;
    let recipe = Recipe::from_yaml(yaml, &unknown).expect("a recipe");
    let digest = A.parse::<PinnedReference>().expect("pinned").digest().clone();
    let pinned = recipe.pin(|_| Ok::<_, ()>(digest.clone())).expect("pins");
    let sha = digest.to_string();
    assert_eq!(
        pinned.to_json(),
        format!(
            r#"[{{"add":"ghcr.io/acme/model@{sha}","path":"model","include":["*.safetensors","config/**"]}},{{"add":"ghcr.io/acme/tokenizer@{sha}","path":"tokenizer"}},{{"remove":"model/optimizer.pt"}},{{"overlay":"ghcr.io/acme/hotfix@{sha}"}}]"#
        )
    );
    assert_eq!(PinnedRecipe::from_json(pinned.to_json()), Ok(pinned));
}

#[rstest]
#[case(r#"[{"add":"$A"}]"#)]
#[case(r#"[{"add":"$A"},{"add":"$B","path":"b/c"}]"#)]
#[case(r#"[{"add":"$A","path":"p","include":["a","b"],"exclude":["c"],"mediaTypes":["text/plain"],"as":"d/n","platform":"linux/arm64"}]"#)]
#[case(r#"[{"add":"$A"},{"remove":"a \"b\" ü/**"},{"overlay":"$B"}]"#)]
fn parses_canonical_json(#[case] template: &str) {
    let text = json(template);
    assert_eq!(PinnedRecipe::from_json(&text).map(|recipe| recipe.to_json().to_owned()), Ok(text));
}

#[rstest]
#[case::a_space(r#"[{"add": "$A"}]"#)]
#[case::a_newline("[{\"add\":\"$A\"}]\n")]
#[case::key_order(r#"[{"path":"p","add":"$A"}]"#)]
#[case::a_default(r#"[{"add":"$A","path":""}]"#)]
#[case::an_empty_list(r#"[{"add":"$A","include":[]}]"#)]
#[case::a_null_list(r#"[{"add":"$A","include":null}]"#)]
#[case::a_null(r#"[{"add":"$A","path":null}]"#)]
#[case::unsorted(r#"[{"add":"$A","include":["b","a"]}]"#)]
#[case::not_unique(r#"[{"add":"$A","include":["a","a"]}]"#)]
#[case::escaped_more_than_needed(r#"[{"add":"$A","include":["\u0061"]}]"#)]
#[case::platform_not_normal(r#"[{"add":"$A","platform":"linux/x86_64"}]"#)]
#[case::unknown_key(r#"[{"add":"$A","mode":"0644"}]"#)]
#[case::twice_the_same_key(r#"[{"add":"$A","add":"$A"}]"#)]
#[case::a_tag(r#"[{"add":"ghcr.io/acme/model:v1"}]"#)]
#[case::no_digest(r#"[{"add":"ghcr.io/acme/model"}]"#)]
#[case::dot_dot(r#"[{"add":"$A","path":"../etc"}]"#)]
#[case::absolute(r#"[{"add":"$A","path":"/etc"}]"#)]
#[case::two_verbs(r#"[{"add":"$A","overlay":"$B"}]"#)]
#[case::no_verb(r#"[{"path":"p"}]"#)]
#[case::a_patch(r#"[{"patch":"$A"}]"#)]
#[case::a_level(r#"[{"add":"$A","level":"minor"}]"#)]
#[case::a_path_beside_remove(r#"[{"add":"$A"},{"remove":"a","path":"p"}]"#)]
#[case::remove_first(r#"[{"remove":"a"}]"#)]
#[case::empty("[]")]
#[case::an_object(r#"{"add":"$A"}"#)]
#[case::no_json("add")]
#[case::nothing("")]
#[case::text_behind(r#"[{"add":"$A"}]x"#)]
#[case::a_byte_order_mark("\u{feff}[{\"add\":\"$A\"}]")]
fn rejects_every_other_form_of_the_json(#[case] template: &str) {
    let result = PinnedRecipe::from_json(&json(template));
    assert!(result.is_err(), "{result:?}");
}

#[rstest]
#[case::unknown_key("- add: a\n  paht: x\n", "line 2")]
#[case::two_verbs("- {add: a, remove: b}", "exactly one")]
#[case::not_a_list(
    "add: a",
    "cannot parse the recipe: line 1 column 1: expected sequence start: write a list of steps"
)]
#[case::ambiguous("- add: team/app", "docker.io/team/app")]
#[case::bad_path("- {add: a, path: ../x}", "step 1")]
#[case::nothing("", "")]
#[case::a_list_for_a_step("- [ghcr.io/acme/model:v1]", "line 1")]
#[case::an_empty_path(
    "- add: a\n- {add: b, path: ''}",
    "step 2 of the recipe: path is empty: write path: DIRECTORY"
)]
#[case::a_path_that_is_not_there("- add: a\n  path:\n", "step 1 of the recipe: path is empty")]
#[case::an_empty_list(
    "- {add: a, include: []}",
    "step 1 of the recipe: include is empty: write include: [GLOB]"
)]
#[case::an_empty_exclude("- {add: a, exclude: []}", "step 1 of the recipe: exclude is empty")]
#[case::no_types(
    "- {add: a, mediaTypes: []}",
    "mediaTypes is empty: write mediaTypes: [TYPE], or remove the key"
)]
#[case::an_empty_name("- {add: a, as: ''}", "step 1 of the recipe: as is empty: write as: NAME")]
#[case::a_name_that_leaves(
    "- {add: a, as: ../b}",
    "step 1 of the recipe: as: \"../b\" is not a path inside the volume"
)]
#[case::a_name_for_a_patch(
    "- {patch: a, as: b}",
    "step 1 of the recipe: as is allowed only in a step with add or overlay"
)]
#[case::a_name_beside_remove("- add: a\n- {remove: b, as: c}", "a step with remove cannot have \"as\"")]
#[case::a_list_that_is_not_there("- add: a\n  include:\n  path: x", "step 1 of the recipe: include is empty")]
#[case::a_string_for_a_list(
    "- add: b\n- add: a\n  include: x",
    "step 2 of the recipe: include is not a list: write include: [GLOB]"
)]
#[case::a_number_for_a_list("- {add: a, mediaTypes: 7}", "step 1 of the recipe: mediaTypes is not a list")]
#[case::an_object_for_a_list("- {add: a, exclude: {x: y}}", "step 1 of the recipe: exclude is not a list")]
#[case::an_empty_list_beside_remove(
    "- add: a\n- {remove: b, include: []}",
    "a step with remove cannot have \"include\""
)]
#[case::a_patch("- add: a\n- patch: a\n", "step 2 of the recipe is a patch")]
#[case::a_patch_and_more("- {add: a, patch: b}", "exactly one")]
#[case::no_such_level("- {patch: a, level: huge}", "step 1 of the recipe: level: \"huge\" is not a level")]
#[case::an_empty_level("- {patch: a, level: }", "is not a level")]
#[case::a_level_alone(
    "- {add: a, level: minor}",
    "step 1 of the recipe: level is allowed only in a step with patch: remove it"
)]
#[case::an_empty_platform("- {add: a, platform: ''}", "step 1")]
#[case::twice_the_same(
    "- {add: a, path: x}\n- add: b\n- {add: 'a:latest', path: x}",
    "steps 1 and 3 of the recipe add the same"
)]
fn yaml_errors_name_the_line_or_the_step(#[case] yaml: &str, #[case] words: &str) {
    let error = Recipe::from_yaml(yaml, &unknown).expect_err("an error").to_string();
    assert!(error.contains(words), "{error}");
}

#[rstest]
#[case::another_path("- add: a\n- {add: a, path: x}")]
#[case::another_filter("- {add: a, include: [x]}\n- {add: a, include: [y]}")]
#[case::removed_in_between("- add: a\n- remove: '**'\n- add: a")]
#[case::overlaid("- add: a\n- overlay: a")]
#[case::a_whiteout_in_between("- add: a\n- overlay: b\n- add: a")]
#[case::numbers_that_are_names("- {add: a, path: 2024, include: [007, 1.0]}")]
fn accepts_the_same_artifact_twice_where_the_files_can_differ(#[case] yaml: &str) {
    assert!(Recipe::from_yaml(yaml, &unknown).is_ok(), "{:?}", Recipe::from_yaml(yaml, &unknown));
}

#[test]
fn rejects_yaml_alias_bombs_and_deep_nesting() {
    let level = |level: usize| {
        format!("a{}: &a{} [{}]\n", level + 1, level + 1, vec![format!("*a{level}"); 10].join(","))
    };
    let yaml = format!("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n{}", (0..8).map(level).collect::<String>());
    assert!(Recipe::from_yaml(&yaml, &unknown).is_err());
    let nested = "[".repeat(20_000);
    assert!(Recipe::from_yaml(&nested, &unknown).is_err());
    assert!(PinnedRecipe::from_json(&nested).is_err());
}

fn pinned_reference() -> impl Strategy<Value = PinnedReference> {
    ("[a-z]{1,5}", any::<[u8; 2]>()).prop_map(|(name, seed)| {
        Reference::parse(&format!("r.example:5000/{name}")).expect("valid").pin(Digest::sha256_of(&seed))
    })
}

fn glob() -> impl Strategy<Value = Glob> {
    "[a-z*?. é\"]{1,6}".prop_filter_map("a glob", |text| text.parse().ok())
}

fn layer() -> impl Strategy<Value = Layer<PinnedReference>> {
    let path =
        "([a-zA-Z0-9_]{1,4}(/[a-z]{1,3}){0,2})?".prop_map(|text| text.parse::<TreePath>().expect("a path"));
    let media_type = "[a-z]{1,3}/[a-z+.]{1,4}".prop_filter_map("a type", |text| text.parse().ok());
    let globs = || proptest::collection::vec(glob(), 0..3);
    (
        pinned_reference(),
        path,
        globs(),
        globs(),
        proptest::collection::vec(media_type, 0..3),
        "([a-z]{1,3})?".prop_map(|text| text.parse::<TreePath>().expect("a path")),
        proptest::option::of(
            "linux/(amd64|arm64|arm/v7)".prop_map(|text| text.parse::<Platform>().expect("valid")),
        ),
    )
        .prop_map(|(reference, path, include, exclude, media_types, name, platform)| {
            let layer = Layer::new(reference).at(path).including(include).excluding(exclude);
            let layer = layer.with_media_types(media_types).with_name(name);
            match platform {
                Some(platform) => layer.for_platform(platform),
                None => layer,
            }
        })
}

pub(crate) fn pinned_recipe() -> impl Strategy<Value = PinnedRecipe> {
    let step = prop_oneof![
        3 => layer().prop_map(Step::Add),
        1 => layer().prop_map(Step::Overlay),
        1 => glob().prop_map(Step::Remove),
    ];
    (layer(), proptest::collection::vec(step, 0..4)).prop_map(|(first, rest)| {
        let steps = std::iter::once(Step::Add(first)).chain(rest).collect();
        PinnedRecipe::new(steps).expect("begins with add")
    })
}

proptest! {
    #[test]
    fn canonical_json_parses_to_the_same_recipe(recipe in pinned_recipe()) {
        prop_assert_eq!(PinnedRecipe::from_json(recipe.to_json()), Ok(recipe));
    }

    #[test]
    fn different_recipes_have_different_json(left in pinned_recipe(), right in pinned_recipe()) {
        prop_assert_eq!(left.steps() == right.steps(), left.to_json() == right.to_json());
    }

    #[test]
    fn hostile_text_never_panics(text in "\\PC{0,200}") {
        let _ = PinnedRecipe::from_json(&text);
        let _ = Recipe::from_yaml(&text, &unknown);
    }
}

fn written(yaml: &str) -> WrittenRecipe {
    WrittenRecipe::from_yaml(yaml, &unknown).unwrap()
}

/// The verb, the repository, the path and the globs of a step.
pub(crate) fn summary(step: &Step<Reference>) -> String {
    let verb = match step {
        Step::Add(_) => "add",
        Step::Overlay(_) => "overlay",
        Step::Remove(glob) => return format!("remove {glob}"),
    };
    let layer = step.layer().unwrap();
    let globs: Vec<_> = layer.include().iter().map(ToString::to_string).collect();
    let globs = if globs.is_empty() { String::new() } else { format!(" [{}]", globs.join(",")) };
    format!("{verb} {} '{}'{globs}", layer.reference().repository(), layer.path())
}

#[test]
fn a_recipe_artifact_in_a_recipe_is_expanded_below_the_path_of_its_step() {
    let inner = written("- {add: r.io/a, path: x}\n- remove: x/**\n- overlay: r.io/b");
    let outer = written("- {patch: r.io/recipe, path: sub}");
    let (recipe, _) =
        outer.expand(|_, step| Ok::<_, PatchStepError>(step.steps_from(&inner).unwrap())).unwrap();
    let steps: Vec<_> = recipe.steps().iter().map(summary).collect();
    assert_eq!(steps, ["add a 'sub/x'", "remove sub/x/**", "overlay b 'sub'"]);
}

#[rstest]
#[case("- {patch: r.io/r, level: minor}", "- add: r.io/a", "remove level")]
#[case("- {patch: r.io/r, include: [x]}", "- add: r.io/a", "remove include")]
#[case("- {patch: r.io/r, platform: linux/arm64}", "- add: r.io/a", "remove platform")]
#[case("- patch: r.io/r", "- patch: r.io/p", "has a patch step itself")]
fn a_step_that_names_a_recipe_artifact_has_a_path_only(
    #[case] outer: &str,
    #[case] inner: &str,
    #[case] words: &str,
) {
    let outer = written(outer);
    let (_, step) = outer.patches().next().unwrap();
    let error = step.steps_from(&written(inner)).unwrap_err().to_string();
    assert!(error.contains(words), "{error}");
}
