// Both voices drawn as they go: the microphone above the line, the reply below, the last seconds.

const SECONDS = 10;
const BAR_MS = 50;
const BARS = (SECONDS * 1000) / BAR_MS;
const LOUD = 0.25; // this level fills half the strip

export class Strip {
  /** canvas: as wide as its box; meter: the same level for those who want no motion. */
  constructor({ canvas, meter }) {
    Object.assign(this, { canvas, meter });
    this.bars = []; // [microphone, reply], newest last
    this.now = [0, 0];
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.timer = null;
  }

  /** The level of the microphone (0) or of the reply (1). */
  take(voice, level) {
    this.now[voice] = Math.max(this.now[voice], level);
    this.timer ??= setInterval(() => this.#step(), BAR_MS);
  }

  #step() {
    this.meter.value = Math.min(1, this.now[0] / LOUD);
    this.bars.push(this.now);
    this.now = [0, 0];
    if (this.bars.length > BARS) this.bars.shift();
    if (this.bars.every(([up, down]) => up + down === 0)) {
      clearInterval(this.timer); // nothing moves any more
      this.timer = null;
    }
    if (!this.still.matches && !document.hidden) requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    const { canvas } = this;
    const ratio = devicePixelRatio;
    const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio];
    if (canvas.width !== width || canvas.height !== height)
      Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    const colours = ["--user", "--reply"].map((name) => style.getPropertyValue(name));
    pen.clearRect(0, 0, width, height);
    const step = width / BARS;
    this.bars.forEach((levels, at) => {
      const x = width - (this.bars.length - at) * step;
      levels.forEach((level, voice) => {
        const size = Math.min(1, Math.sqrt(level / LOUD)) * (height / 2 - ratio);
        pen.fillStyle = colours[voice];
        pen.fillRect(x, voice ? height / 2 + ratio : height / 2 - size, step * 0.7, size);
      });
    });
  }
}
