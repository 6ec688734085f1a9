// The gallery's filters: an item is shown where it has every value that is chosen. The choice stands in the address.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector(".gallery-filters");
  if (!form) return; // Jupyter Book loads this on every page
  const items = [...document.querySelectorAll(".gallery-item")];
  const selects = [...form.querySelectorAll("select")];
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const select of selects) select.value = asked.get(select.name) ?? "";
  const show = () => {
    const chosen = selects.filter((select) => select.value);
    for (const item of items) {
      const fits = chosen.every(({ value }) => item.classList.contains(value));
      item.closest(".sd-col").hidden = !fits;
    }
    const shown = items.filter((item) => !item.closest(".sd-col").hidden).length;
    form.querySelector("output").textContent = `${shown} of ${items.length} shown`;
    const words = new URLSearchParams(chosen.map(({ name, value }) => [name, value])).toString();
    history.replaceState(null, "", words ? `#${words}` : location.pathname + location.search);
  };
  form.addEventListener("change", show);
  form.hidden = false;
  show();
});
