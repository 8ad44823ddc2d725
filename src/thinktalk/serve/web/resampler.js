// Samples at the sound card's rate -> samples at another, piece by piece: a windowed sinc.

const ZERO_CROSSINGS = 16; // on either side of the kernel's middle
const PASS_BAND = 0.94; // of the lower of the two Nyquist frequencies

/** Any pieces in, the matching pieces out; however the input is cut, the output is the same. */
export class Resampler {
  constructor(fromHz, toHz) {
    const divisor = greatestCommonDivisor(fromHz, toHz);
    this.step = fromHz / divisor; // one output is step / phases inputs after the last
    this.phases = toHz / divisor;
    const cutoff = PASS_BAND * Math.min(1, toHz / fromHz);
    this.half = Math.ceil(ZERO_CROSSINGS / cutoff);
    this.kernels = Array.from({ length: this.phases }, (_, phase) =>
      kernel(phase / this.phases, this.half, cutoff),
    );
    this.past = new Float32Array(this.half - 1); // silence before the beginning
    this.position = 0; // of the next output, in 1 / phases inputs after the start of `past`
  }

  /** Float32Array -> Float32Array; up to `half` inputs wait for those that follow them. */
  push(samples) {
    const input = new Float32Array(this.past.length + samples.length);
    input.set(this.past);
    input.set(samples, this.past.length);
    const taps = 2 * this.half;
    const room = input.length - taps; // the last place where a kernel fits
    const count = Math.max(0, Math.floor((room * this.phases - this.position) / this.step) + 1);
    const output = new Float32Array(count);
    for (let k = 0; k < count; k++) {
      const at = Math.floor(this.position / this.phases);
      const weights = this.kernels[this.position % this.phases];
      let sum = 0;
      for (let tap = 0; tap < taps; tap++) sum += input[at + tap] * weights[tap];
      output[k] = sum;
      this.position += this.step;
    }
    const used = Math.min(input.length, Math.floor(this.position / this.phases));
    this.past = input.slice(used);
    this.position -= used * this.phases;
    return output;
  }
}

/** Weights of 2 * half inputs for a point `fraction` of an input after the middle-left one. */
function kernel(fraction, half, cutoff) {
  const weights = new Float32Array(2 * half);
  let sum = 0;
  for (let tap = 0; tap < weights.length; tap++) {
    const distance = tap - (half - 1) - fraction;
    const window = 0.5 + 0.5 * Math.cos((Math.PI * distance) / half);
    weights[tap] = sinc(distance * cutoff) * (Math.abs(distance) < half ? window : 0);
    sum += weights[tap];
  }
  return weights.map((weight) => weight / sum); // a constant stays what it is
}

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

function greatestCommonDivisor(a, b) {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}
