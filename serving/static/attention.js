// Where the model looked, as a warm veil over the picture and as words.

const CROP_SHARE = 0.875;  // the centre square that the model sees where pictures are cropped
const MOST_PIXELS = 900;

export function drawAttention(canvas, bitmap, map, crop) {
  const scale = Math.min(1, MOST_PIXELS / Math.max(bitmap.width, bitmap.height));
  const width = canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  const height = canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, width, height);
  // A flat map says nothing: no veil at all.
  if (!map || isFlat(map)) return;
  const side = crop === "crop" ? CROP_SHARE * Math.min(width, height) : null;
  const box = side ? [(width - side) / 2, (height - side) / 2, side, side] : [0, 0, width, height];
  context.fillStyle = "rgba(10, 12, 20, 0.4)";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  // First the picture itself comes back where the model looked, then a little colour.
  const bright = new OffscreenCanvas(width, height);
  const light = bright.getContext("2d");
  light.imageSmoothingEnabled = true;
  light.drawImage(mask(map, [255, 255, 255], 1), ...box);
  light.globalCompositeOperation = "source-in";
  light.drawImage(bitmap, 0, 0, width, height);
  context.drawImage(bright, 0, 0);
  context.drawImage(mask(map, [255, 120, 0], 0.4), ...box);
}

function mask(map, [red, green, blue], strength) {
  const rows = map.length, columns = map[0].length;
  const most = Math.max(...map.flat()), least = Math.min(...map.flat());
  const small = new OffscreenCanvas(columns, rows);
  const context = small.getContext("2d");
  const data = context.createImageData(columns, rows);
  map.flat().forEach((value, i) => {
    // A root, for one region with most of the weight would leave nothing of the others to see.
    const share = Math.sqrt((value - least) / (most - least));
    data.data.set([red, green, blue, Math.round(255 * strength * share)], 4 * i);
  });
  context.putImageData(data, 0, 0);
  return small;
}

function isFlat(map) {
  const flat = map.flat();
  return Math.max(...flat) * flat.length < 1.15 * flat.reduce((sum, value) => sum + value, 0);
}

export function describeAttention(map) {
  const rows = map.length, columns = map[0].length;
  const flat = map.flat();
  if (isFlat(map)) return "nearly everywhere alike";
  const at = flat.indexOf(Math.max(...flat));
  const place = (share) => (share < 1 / 3 ? 0 : share > 2 / 3 ? 2 : 1);
  const row = place((Math.floor(at / columns) + 0.5) / rows), column = place(((at % columns) + 0.5) / columns);
  const name = [
    ["in the upper left", "at the top", "in the upper right"],
    ["on the left", "in the middle", "on the right"],
    ["in the lower left", "at the bottom", "in the lower right"],
  ][row][column];
  return `mostly ${name}`;
}
