// An HTTP handler in JavaScript, as a service worker is one.
let count = 0;

async function answer(request) {
  const url = new URL(request.url);
  switch (url.pathname) {
    case '/upper':
      return new Response((await request.text()).toUpperCase());
    case '/fetch': {
      const response = await fetch(`http://${url.search.slice(1)}`);
      return new Response(`${response.status} ${await response.text()}`);
    }
    case '/throw':
      throw new Error('as I was told');
    default:
      return new Response(`${url.pathname} ${++count}`, { status: 201 });
  }
}

addEventListener('fetch', (event) => event.respondWith(answer(event.request)));
