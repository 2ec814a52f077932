(() => {
  const viewers = JSON.parse(document.getElementById("viewers").textContent);
  // Pictures are decoded when their part is opened: a long report stays quick.
  for (const details of document.querySelectorAll("details")) {
    const host = details.querySelector(".viewer");
    if (!host) continue;
    const open = () => {
      if (!details.open || host.childElementCount) return;
      const about = viewers[Number(host.dataset.viewer)];
      viewer.show(host, about.kind, about.panes);
    };
    details.addEventListener("toggle", open);
    open();
  }
  viewer.theme();
})();
