// Runs before the first paint, so that a chosen theme does not flash. A file, because the page allows no inline script.
try {
  const theme = localStorage.getItem("tidewire.theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // Blocked storage: the system's theme it is.
}
