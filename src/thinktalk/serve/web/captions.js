// How much of a reply's text has been spoken: captions grow with the voice, not with the network.

const CHARACTERS_PER_MS = 0.015; // ordinary speech, until the whole sound of a reply is known
const LEAD_MS = 200; // a word may be read shortly before it is heard
const LONGEST_WORD = 24; // in scripts without spaces a "word" ends here

/** Number of characters of turn.text to show; the whole text when nothing of it is to be heard. */
export function shownLength(turn) {
  const { text, heardMs, audioMs, state, whole, cutMs, kept } = turn;
  if (turn.role !== "reply" || !turn.spoken || kept) return text.length;
  if (cutMs !== null) return endOfWord(text, share(turn, cutMs));
  if (state === "over" || (whole && heardMs + LEAD_MS >= audioMs)) return text.length;
  return endOfWord(text, share(turn, heardMs ? heardMs + LEAD_MS : 0));
}

/** Characters that belong to the first `ms` of the sound, as if all were spoken equally fast. */
function share({ text, audioMs, whole }, ms) {
  const wholeMs = whole ? audioMs : Math.max(audioMs, text.length / CHARACTERS_PER_MS);
  return wholeMs ? Math.round((text.length * Math.min(ms, wholeMs)) / wholeMs) : 0;
}

function endOfWord(text, length) {
  if (length <= 0 || length >= text.length) return Math.max(0, length);
  const rest = text.slice(length).search(/\s/u);
  const end = rest < 0 ? text.length : length + rest;
  if (end - length <= LONGEST_WORD) return end;
  return text.codePointAt(length - 1) > 0xffff ? length + 1 : length; // not half a character
}
