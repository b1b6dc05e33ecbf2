// draw each chart of a page where its specification stands
// expressions are interpreted and styles stand above, so that the policy needs neither eval nor styles of others
const options = { actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: { disableDefaultStyle: true } };
const draw = (place) => {
  const held = place.querySelector("script");
  vegaEmbed(place, JSON.parse(held.textContent), options)
    .catch((error) => { console.error(error); place.textContent = "This figure could not be drawn: " + error; });
};
document.querySelectorAll(".figure").forEach((place) => {
  const folded = place.closest("details:not([open])");
  if (!folded) draw(place);
  else folded.addEventListener("toggle", () => draw(place), { once: true });
});
