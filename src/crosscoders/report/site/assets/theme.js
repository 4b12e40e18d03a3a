"use strict";
// Runs before the first paint, so that a remembered theme never flashes the other one.

const THEMES = ["auto", "light", "dark"];
const THEME_KEY = "crosscoders-report-theme";
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = rememberedTheme();

/** The remembered theme; "auto" where nothing is remembered or storage is refused. */
function rememberedTheme() {
  try {
    const theme = localStorage.getItem(THEME_KEY);
    return THEMES.includes(theme) ? theme : "auto";
  } catch {
    return "auto";
  }
}

/** Color the page by the chosen theme; "auto" follows the system's setting. */
function showTheme() {
  const system = systemIsDark.matches ? "dark" : "light";
  document.documentElement.dataset.theme = chosenTheme === "auto" ? system : chosenTheme;
}

/** Show a theme and remember it where storage is allowed. */
function chooseTheme(theme) {
  chosenTheme = theme;
  showTheme();
  try {
    localStorage.setItem(THEME_KEY, theme);
  } catch {
    // A browser that refuses storage still shows the theme until the page is closed.
  }
}

systemIsDark.addEventListener("change", showTheme);
showTheme();
