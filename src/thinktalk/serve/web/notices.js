// What went wrong, said so that one knows what to do about it.

import { element } from "./element.js";

const ABOUT_DEVICES = {
  NotAllowedError: (what) =>
    `The ${what} is blocked. Allow it for this page in the browser's address bar, then try again.`,
  NotFoundError: (what) => `No ${what} was found. Plug one in, then try again.`,
  NotReadableError: (what) => `The ${what} is in use by another program, or does not answer.`,
  OverconstrainedError: (what) => `No ${what} was found that fits. Plug one in, then try again.`,
  SecurityError: (what) =>
    `Browsers give the ${what} only to pages over https or on localhost. Open this page that way.`,
  AbortError: () => "The server cannot be reached. Reload the page when it is there again.",
  NotSupportedError: (what) => `This browser cannot share a ${what}.`,
};

/** The sentence for what a device, or anything else, was refused with. */
export function sentence(error, what) {
  if (!(error instanceof DOMException)) return error.message;
  return ABOUT_DEVICES[error.name]?.(what) ?? `The ${what} does not work: ${error.message}`;
}

export class Notices {
  /** box: an element with role="alert". */
  constructor(box) {
    this.box = box;
  }

  /** Shows a sentence until it is dismissed or the same `about` has news. */
  show(text, { about = text, action = null } = {}) {
    this.clear(about);
    const close = element("button", { type: "button", textContent: "Dismiss" });
    close.onclick = () => this.clear(about);
    const notice = element("p", { className: "notice" }, element("span", {}, text));
    if (action) notice.append(this.#button(action, about));
    notice.append(close);
    notice.dataset.about = about;
    this.box.append(notice);
  }

  clear(about) {
    for (const notice of [...this.box.children]) {
      if (notice.dataset.about === about) notice.remove();
    }
  }

  #button({ title, run }, about) {
    const button = element("button", { type: "button", textContent: title });
    button.onclick = () => {
      this.clear(about);
      run();
    };
    return button;
  }
}
