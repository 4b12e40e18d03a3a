"use strict";
// Runs before the first paint, so that a remembered theme never flashes the other one.

const THEMES = ["auto", "light", "dark"];
const THEME_KEY = "crosscoders-report-theme";

/** The remembered theme; "auto" where nothing is remembered or storage is refused. */
function rememberedTheme() {
  try {
    const theme = localStorage.getItem(THEME_KEY);
    return THEMES.includes(theme) ? theme : "auto";
  } catch {
    return "auto";
  }
}

/** Show a theme: "auto" leaves the choice to the system's setting. */
function showTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** Show a theme and remember it where storage is allowed. */
function chooseTheme(theme) {
  showTheme(theme);
  try {
    localStorage.setItem(THEME_KEY, theme);
  } catch {
    // A browser that refuses storage still shows the theme until the page is closed.
  }
}

showTheme(rememberedTheme());
