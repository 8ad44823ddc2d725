// When the user really stopped speaking: the server says which stretch of sound was speech, the
// levels of the microphone say where its last loud moment was.

const REMEMBERED = 3000; // frames of 20 ms: a minute
const QUIET_SHARE = 0.1; // a frame 20 dB below the loudest of its turn is no speech

export class Ear {
  constructor() {
    this.frames = [];
  }

  /** A frame: ms, its end in the session's sound; its level; at, performance.now() then. */
  note(frame) {
    this.frames.push(frame);
    if (this.frames.length > REMEMBERED) this.frames.shift();
  }

  /** performance.now() of the last speech between two places of the session's sound; of the last
      frame before the end if none was loud; null if none is known. */
  lastSpeech(startMs, endMs) {
    const turn = this.frames.filter(({ ms }) => ms > startMs && ms <= endMs);
    const loudest = Math.max(0, ...turn.map(({ level }) => level));
    const loud = turn.findLast(({ level }) => level > QUIET_SHARE * loudest);
    return (loud ?? turn.at(-1))?.at ?? null;
  }
}
