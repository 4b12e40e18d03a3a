"use strict";
// Data files are scripts of one call, addData("name", "base64"), since fetch is blocked on file://.

const DATA_TYPES = {
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i1: Int8Array, i2: Int16Array, f4: Float32Array,
};
const arrivedData = new Map();
const loadedData = new Map();

/** Called by each data file: keep its content until loadData unpacks it. */
function addData(name, base64) {
  arrivedData.set(name, base64);
}

/** The content of data/NAME.js as {json, arrays: {name: {data, shape}}}; each file is read once. */
function loadData(name) {
  if (!loadedData.has(name)) {
    const loading = fetchData(name);
    loadedData.set(name, loading);
    loading.catch(() => loadedData.delete(name));
  }
  return loadedData.get(name);
}

/** Run a data file and unpack what it brought. */
async function fetchData(name) {
  await runDataFile(name);
  const base64 = arrivedData.get(name);
  arrivedData.delete(name);
  if (base64 === undefined) throw new Error(`data/${name}.js does not hold its data; write the report again`);
  try {
    return unpack(await inflate(bytesOf(base64)));
  } catch (error) {
    throw new Error(`data/${name}.js is damaged; write the report again`, {cause: error});
  }
}

/** Run data/NAME.js by a script tag, which is taken away again. */
function runDataFile(name) {
  return new Promise((resolve, reject) => {
    const missing = `data/${name}.js is missing; the report folder is incomplete`;
    const script = el("script", {src: `data/${name}.js`, on: {
      load: () => resolve(script.remove()),
      error: () => reject(new Error(missing, {cause: script.remove()})),
    }});
    document.head.append(script);
  });
}

/** The bytes of a base64 string. */
function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** Inflate bytes in zlib format. */
function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

/** Read a container: uint32 header length, ASCII JSON header, padding to 8 bytes, arrays. */
function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder("ascii").decode(new Uint8Array(buffer, 4, length)));
  const start = Math.ceil((4 + length) / 8) * 8;
  const arrays = {};
  for (const [name, {dtype, shape, offset}] of Object.entries(header.arrays)) {
    if (!Object.hasOwn(DATA_TYPES, dtype)) throw new Error(`array ${name} has the unknown type ${dtype}`);
    const size = shape.reduce((product, n) => product * n, 1);
    arrays[name] = {data: new DATA_TYPES[dtype](buffer, start + offset, size), shape};
  }
  return {json: header.json, arrays};
}
