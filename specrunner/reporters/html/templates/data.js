"use strict";
// Unpacks the data that stand in the page: JSON, compressed by gzip, in base64.

const unpacked = new Map();

async function unpack(name) {
  if (!unpacked.has(name)) {
    const element = document.getElementById("data-" + name);
    unpacked.set(name, decode(element.textContent.trim()));
  }
  return unpacked.get(name);
}

async function decode(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let index = 0; index < binary.length; index += 1) bytes[index] = binary.charCodeAt(index);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

async function loadDetails(index, chunk) {
  const details = await unpack("details-" + Math.floor(index / chunk));
  return details[index % chunk];
}

const NAMES = ["nodeId", "id", "suite", "verdict", "message", "seconds", "engine", "model", "tags"];

function toCase(row, index) {
  const entry = { index };
  NAMES.forEach((name, column) => { entry[name] = row[column]; });
  entry.haystack = [entry.nodeId, entry.message, entry.engine, entry.model, ...entry.tags].join("\n").toLowerCase();
  return entry;
}
