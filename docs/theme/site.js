// Paper is white: a page that is read in the dark is printed in the light.
let read = null;
addEventListener("beforeprint", () => {
  read = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
});
addEventListener("afterprint", () => {
  if (read) document.documentElement.dataset.theme = read;
});
