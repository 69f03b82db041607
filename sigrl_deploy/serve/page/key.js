// The form of both pages that asks for the service's key.

import { service } from "./service.js";

const SENDABLE = /^[ -~]+$/; // no key has other characters, and a browser sends none in a header

const $ = (id) => document.getElementById(id);

function ask(refused) {
  if (refused) $("key-hint").textContent = "The service refused this key. Enter another one.";
  sessionStorage.removeItem("key");
  if (!$("key").hidden) return;
  $("key").hidden = false;
  $("key-text").focus();
}

// `use` is called when there is a key to try.
export function onKey(use) {
  service.refusesKey = ask;
  $("key").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = $("key-text").value.trim();
    if (!SENDABLE.test(key)) return ask(true);
    sessionStorage.setItem("key", key);
    $("key-text").value = "";
    $("key").hidden = true;
    use();
  });
}
