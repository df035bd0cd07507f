// Owns the choice between light and dark. A classic script in the head, so that the first paint has the right colours.

(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("waybill-theme");
  } catch {
    // A browser that keeps nothing shows what the system wishes.
  }
  if (chosen) document.documentElement.dataset.theme = chosen;
})();
