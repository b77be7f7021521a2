// Rasterise a list of SVG drawings to raw RGBA.
// node raster.mjs jobs.json out.bin   (jobs: [{svg, width, height}], written one after another)
import { Resvg } from "@resvg/resvg-js";
import fs from "node:fs";

const [, , jobsPath, outPath] = process.argv;
const jobs = JSON.parse(fs.readFileSync(jobsPath, "utf8"));
const out = fs.openSync(outPath, "w");
for (const { svg, width, height } of jobs) {
  const image = new Resvg(svg, { fitTo: { mode: "width", value: width } }).render();
  if (image.width !== width || image.height !== height)
    throw new Error(`rendered ${image.width}x${image.height}, wanted ${width}x${height}`);
  fs.writeSync(out, image.pixels);
}
fs.closeSync(out);
