// A menu of the versions of this documentation, in the bar at the top of each page. `docs/add-version` writes
// versions.json beside the folders of the versions; without it (a book on this machine) there is no menu.
(async () => {
  const base = new URL(path_to_root || "./", window.location.href);
  const parts = base.pathname.replace(/\/$/, "").split("/");
  const current = parts.pop();
  let versions;
  try {
    const answer = await fetch(new URL("../versions.json", base));
    if (!answer.ok) return;
    versions = await answer.json();
  } catch {
    return;
  }
  if (!versions.includes(current)) return;
  const menu = document.createElement("select");
  menu.className = "version-menu";
  menu.setAttribute("aria-label", "Version of the documentation");
  for (const version of versions) {
    menu.add(new Option(version, version, false, version === current));
  }
  menu.addEventListener("change", () => {
    const page = window.location.pathname.slice(base.pathname.length);
    const target = new URL(`../${menu.value}/`, base);
    // The page may not exist in that version.
    fetch(new URL(page, target), { method: "HEAD" })
      .then((answer) => (window.location.href = answer.ok ? new URL(page, target) : target))
      .catch(() => (window.location.href = target));
  });
  document.querySelector(".right-buttons")?.prepend(menu);
})();
