// Requests to the service that this page comes from.

const AT_ONCE = 4; // requests under way
const TRIES = 10; // of a request that the service is too busy for

export const service = { vocabularies: [], heatmaps: false, openLabels: false, mostBytes: Infinity, refusesKey: () => {} };

// An error that another try would meet again.
export const lasting = (message) => Object.assign(new Error(message), { lasting: true });

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

export async function call(path, { signal, ...options } = {}) {
  for (let attempt = 1; ; attempt++) {
    const key = sessionStorage.getItem("key");
    const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
    const response = await fetch(path, { ...options, headers, signal }).catch((error) => {
      throw signal?.aborted ? error : new Error("The service does not answer. Is it running?");
    });
    if (response.ok) return response.json();
    if (response.status === 429 && attempt < TRIES) {
      await pause((Number(response.headers.get("Retry-After")) || 1) * (1 + Math.random() / 2), signal);
      continue;
    }
    const problem = (await response.json().catch(() => null))?.error;
    if (response.status === 401) service.refusesKey(key !== null);
    throw refusal(response.status, problem);
  }
}

// A proxy before the service refuses in its own way, without a `problem`.
function refusal(status, problem) {
  if (problem) return Object.assign(new Error(problem.message), { lasting: problem.code === "picture" || status === 413 });
  if (status === 413) return lasting("This is too large for the service or a proxy before it.");
  return new Error(`The service answered with status ${status}.`);
}

const turns = { free: AT_ONCE, waiting: [] };

async function inTurn(work) {
  if (turns.free > 0) turns.free--;
  else await new Promise((resolve) => turns.waiting.push(resolve));
  try {
    return await work();
  } finally {
    const next = turns.waiting.shift();
    if (next) next();
    else turns.free++;
  }
}

async function canBeRead(file) {
  const reader = file.stream().getReader(); // a slice of a file that is gone may be empty, and no error
  return reader.read().then(() => reader.cancel()).then(() => true, () => false);
}

// `asked` are options of the service's interface.
export async function tagsOf(file, asked, signal) {
  if (file.isFolder) throw lasting("This is a folder. Drop the pictures that are in it.");
  if (file.size > service.mostBytes) {
    const [has, most] = [file.size, service.mostBytes].map((bytes) => `${(bytes / 1e6).toFixed(1)} MB`);
    throw lasting(`This file has ${has}; the service takes ${most} at most.`);
  }
  const body = new FormData();
  for (const [name, value] of Object.entries(asked)) body.append(name, value);
  body.append("picture", file, file.name);
  return inTurn(async () => {
    signal.throwIfAborted();
    // A file that is gone would look like a service that does not answer.
    if (!(await canBeRead(file))) throw lasting("This file cannot be read any more. Was it moved, changed or deleted?");
    return call("v1/tag", { method: "POST", body, signal });
  });
}
