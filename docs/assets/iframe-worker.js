"use strict";

// Search runs in a web worker, which a browser refuses to start for a page that was opened from disk (file://).
// There a hidden frame does the same job: it has a global scope of its own and speaks the same messages.

/** A stand-in for Worker: one script in a frame of its own. */
class FrameWorker extends EventTarget {
  /** Load the script; messages sent before it is there wait for it. */
  constructor(url) {
    super();
    this.waiting = [];
    const frame = document.createElement("iframe");
    frame.hidden = true;
    frame.title = "search";
    document.body.append(frame);
    this.scope = frame.contentWindow;
    this.scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
    const script = frame.contentDocument.createElement("script");
    script.src = url;
    script.addEventListener("load", () => this.start());
    frame.contentDocument.body.append(script);
  }

  /** Deliver what waited. */
  start() {
    const waiting = this.waiting;
    this.waiting = null;
    waiting.forEach((data) => this.postMessage(data));
  }

  /** Send one message to the script. */
  postMessage(data) {
    if (this.waiting) {
      this.waiting.push(data);
    } else {
      this.scope.dispatchEvent(new MessageEvent("message", { data }));
    }
  }
}

if (location.protocol === "file:") {
  window.Worker = FrameWorker;
}
