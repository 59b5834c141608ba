// Search in a site that is opened as files. Browsers start no Worker there, so the script of the search runs in an invisible frame.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const scope = (this.scope = frame.contentWindow);
      scope.document.open(); // a frame that was never opened is replaced later in Firefox, with all that was put into it
      scope.document.write("<body>");
      scope.document.close();
      const load = (source) =>
        new Promise((loaded) => {
          const script = scope.document.createElement("script");
          script.src = new URL(source, document.baseURI);
          script.onload = loaded;
          scope.document.body.append(script);
        });
      scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      scope.importScripts = (...sources) => sources.reduce((done, source) => done.then(() => load(source)), Promise.resolve());
      this.ready = load(url);
    }
    postMessage(data) {
      this.ready.then(() => this.scope.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
