// Run the network of this folder on arrays, or without any on random numbers:
//   node run.mjs [a.npy ...] [--model FILE] [--check]
// It needs onnxruntime-node or onnxruntime-web, nothing else: npm install onnxruntime-web

import { createHash } from "node:crypto";
import { lstatSync, readdirSync, readFileSync } from "node:fs";

const ort = await import("onnxruntime-node")
  .catch(() => import("onnxruntime-web"))
  .catch(() => stop("It needs ONNX Runtime: npm install onnxruntime-web"));

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, bool: Uint8Array, int8: Int8Array,
  uint8: Uint8Array, int32: Int32Array, int64: BigInt64Array,
};
const DTYPES = {
  "<f4": "float32", "<f8": "float64", "|b1": "bool", "|i1": "int8",
  "|u1": "uint8", "<i4": "int32", "<i8": "int64",
};

const SUMS = "SHA256SUMS";
const TOLERANCE = 0.5; // of the largest output, for any precision

const read = (name) => readFileSync(new URL(name, import.meta.url));

function stop(reason) {
  console.error(reason);
  process.exit(1);
}

function parseNpy(bytes) {
  const wide = bytes[6] > 1; // the version says how long the length of the header is
  const start = wide ? 12 : 10;
  const end = start + (wide ? bytes.readUInt32LE(8) : bytes.readUInt16LE(8));
  const header = bytes.toString("latin1", start, end);
  const type = DTYPES[/'descr': '([^']+)'/.exec(header)?.[1]];
  if (!type || header.includes("'fortran_order': True")) stop(`Not a plain array: ${header}`);
  const shape = /'shape': \(([^)]*)\)/.exec(header)[1].split(",").filter((n) => n.trim());
  const data = new ARRAYS[type](new Uint8Array(bytes.subarray(end)).buffer);
  return { type, data, dims: shape.map(Number) };
}

function parseNpz(zip) { // entries are stored as they are; the directory is at the end
  const entries = {};
  let end = zip.length - 22;
  while (zip.readUInt32LE(end) !== 0x06054b50) end--;
  let at = zip.readUInt32LE(end + 16);
  for (let left = zip.readUInt16LE(end + 10); left > 0; left--) {
    const [name, extra, comment] = [28, 30, 32].map((offset) => zip.readUInt16LE(at + offset));
    const local = zip.readUInt32LE(at + 42);
    const start = local + 30 + zip.readUInt16LE(local + 26) + zip.readUInt16LE(local + 28);
    const key = zip.toString("utf8", at + 46, at + 46 + name).replace(/\.npy$/, "");
    entries[key] = parseNpy(zip.subarray(start, start + zip.readUInt32LE(at + 24)));
    at += 46 + name + extra + comment;
  }
  return entries;
}

async function run(config, model, arrays) {
  if (arrays.length !== config.inputs.length) stop(`The network takes ${config.inputs.length} arrays.`);
  const session = await ort.InferenceSession.create(read(model));
  const feeds = config.inputs.map(({ name, type }, i) => {
    const { data, dims } = arrays[i];
    const cast = type === "int64" ? (n) => BigInt(n) : Number;
    const own = arrays[i].type === type ? data : ARRAYS[type].from(Array.from(data, cast));
    return [name, new ort.Tensor(type, own, dims)];
  });
  const found = await session.run(Object.fromEntries(feeds));
  return config.outputs.map(({ name }) => found[name]);
}

function checkFiles() { // the sums name every file of this folder and no other
  const lines = read(SUMS).toString().trim().split("\n");
  const sums = new Map(lines.map((line) => [line.slice(66), line.slice(0, 64)]));
  const here = new URL(".", import.meta.url);
  const there = readdirSync(here).filter((name) => name !== SUMS);
  for (const name of new Set([...sums.keys(), ...there])) {
    const isThere = there.includes(name);
    if (isThere && (!sums.has(name) || !lstatSync(new URL(encodeURIComponent(name), here)).isFile())) {
      stop(`${JSON.stringify(name)} is not one of the files that ${SUMS} names. Get the package again.`);
    }
    const digest = isThere && createHash("sha256").update(read(encodeURIComponent(name))).digest("hex");
    if (digest !== sums.get(name)) {
      stop(`${JSON.stringify(name)} is missing or is not what was shipped. Get the package again.`);
    }
  }
}

async function checkOutputs(config, sample) {
  const models = readdirSync(new URL(".", import.meta.url)).filter((name) => name.endsWith(".onnx"));
  if (!models.length || String(Object.keys(config.models).sort()) !== String(models.sort())) {
    stop("config.json does not name the models of this folder. Get the package again.");
  }
  for (const [name, { data }] of Object.entries(sample)) {
    if (!data.length || !Array.from(data, Number).every(Number.isFinite)) {
      stop(`${name} of sample.npz has numbers that are not finite, or none.`);
    }
  }
  for (const [model, { tolerance }] of Object.entries(config.models)) {
    if (!(tolerance > 0 && tolerance <= TOLERANCE)) {
      stop(`config.json lets ${model} be ${tolerance} off, above ${TOLERANCE}.`);
    }
    const outputs = await run(config, model, config.inputs.map((_, i) => sample[`input_${i}`]));
    if (!outputs.length) stop(`${model} has no outputs. Get the package again.`);
    outputs.forEach((output, i) => {
      const wanted = sample[`output_${i}`];
      const [numbers, own] = [wanted.data, output.data].map((data) => Array.from(data, Number));
      const limit = tolerance * numbers.reduce((most, n) => Math.max(most, Math.abs(n)), 0);
      const near = own.every((n, j) => Math.abs(n - numbers[j]) <= limit);
      if (!near || String(output.dims) !== String(wanted.dims)) {
        stop(`Output ${i} of ${model} is not that of sample.npz, within ${tolerance}.`);
      }
    });
    console.log(`${model}: the files are whole, and it computes what it should.`);
  }
  console.log("This proves that the package is whole, not who made it: see README.md.");
}

function print(config, outputs) {
  outputs.forEach(({ data, dims }, i) => {
    console.log(`${config.outputs[i].name}, shape ${dims}:`, data);
    if (dims.length !== 2) return;
    const rows = Array.from({ length: dims[0] }, (_, j) =>
      Array.from(data.slice(j * dims[1], (j + 1) * dims[1]), Number));
    const best = rows.map((row) => row.indexOf(Math.max(...row)));
    console.log("top-1:", ...best.map((c) => config.classes?.[c] ?? c));
  });
}

function randomArray({ type, shape }) {
  const dims = shape.map((n) => (typeof n === "number" ? n : 1));
  const length = dims.reduce((product, n) => product * n, 1);
  const numbers = Float32Array.from({ length }, Math.random);
  const cast = type === "int64" ? (n) => BigInt(Math.floor(n)) : Number;
  return { type, data: ARRAYS[type].from(Array.from(numbers, cast)), dims };
}

const words = process.argv.slice(2);
if (words.includes("--check")) {
  process.on("uncaughtException", (err) => stop(`The package is damaged (${err.message}). Get it again.`));
}
const at = words.indexOf("--model");
const model = at < 0 ? "model.onnx" : words.splice(at, 2)[1];
const isCheck = words.includes("--check");
if (isCheck) checkFiles();
const config = JSON.parse(read("config.json"));
if (isCheck) {
  await checkOutputs(config, parseNpz(read("sample.npz")));
} else {
  const arrays = words.map((path) => parseNpy(readFileSync(path)));
  print(config, await run(config, model, arrays.length ? arrays : config.inputs.map(randomArray)));
}
