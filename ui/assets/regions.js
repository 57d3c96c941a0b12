// Boxes on a canvas of the picture's shape, each with a prompt. Told to Python as texts: "left,top,right,bottom: prompt".
const PAGE = Math.random().toString(36).slice(2);
const LARGEST = 5, STEP = 0.02, SMALLEST = 0.06;
let regions = [], held = null, turn = 0;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const find = name => element.querySelector(name);
const make = (tag, attributes, text = '') => {
  const made = document.createElement(tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  made.textContent = text;
  return made;
};
const tell = () => trigger('input', {
  turn: `${PAGE}:${++turn}`,
  value: JSON.stringify(regions.map(one => one.box.map(side => +side.toFixed(3)).join(',') + ': ' + one.prompt)),
});
const phrases = () => JSON.parse(find('.s-regions').dataset.phrases);
const unsaid = () => phrases().find(phrase => !regions.some(one => one.prompt.includes(phrase))) ?? '';

const put = (box, [left, top, right, bottom]) => {
  Object.entries({left, top, width: right - left, height: bottom - top})
    .forEach(([name, value]) => { box.style[name] = `${100 * value}%`; });
};
const drawBox = (one, number) => {
  const box = make('div', {
    class: `s-box s-place-${number}`, tabindex: 0, role: 'group', 'data-number': number,
    'aria-label': `Region ${number}. Arrow keys move it, with Shift they change its size, Delete removes it.`,
  });
  box.append(make('span', {class: 's-box-number', 'aria-hidden': 'true'}, number),
             make('span', {class: 's-handle', 'aria-hidden': 'true'}));
  put(box, one.box);
  return box;
};
const drawRow = (one, number) => {
  const row = make('li', {});
  const field = make('input', {
    type: 'text', 'data-number': number, 'aria-label': `What is in region ${number}`, maxlength: 500,
    placeholder: 'what is in it', list: 'region-phrases', autocomplete: 'off',
  });
  field.value = one.prompt;
  row.append(make('span', {class: `s-swatch s-place-${number}`, 'aria-hidden': 'true'}, number), field,
             make('button', {type: 'button', class: 's-button', 'data-remove': number,
                             'aria-label': `Remove region ${number}`}, 'Remove'));
  return row;
};
const draw = () => {
  if (!find('.s-regions')) return;
  find('.s-canvas').replaceChildren(...regions.map((one, place) => drawBox(one, place + 1)));
  find('.s-places').replaceChildren(...regions.map((one, place) => drawRow(one, place + 1)));
  find('#region-phrases').replaceChildren(...phrases().map(value => make('option', {value})));
  find('[data-add]').disabled = regions.length >= LARGEST;
};
const begin = () => {
  if (!find('.s-regions')) return;
  regions = JSON.parse(find('.s-regions').dataset.regions);
  draw();
};
const remove = number => { regions.splice(number - 1, 1); draw(); tell(); find('[data-add]').focus(); };
const add = box => { regions.push({box, prompt: unsaid()}); draw(); return regions.length; };
const moved = ([left, top, right, bottom], x, y) => {
  const dx = clamp(x, -left, 1 - right), dy = clamp(y, -top, 1 - bottom);
  return [left + dx, top + dy, right + dx, bottom + dy];
};
const sized = ([left, top, right, bottom], x, y) =>
  [left, top, clamp(right + x, left + SMALLEST, 1), clamp(bottom + y, top + SMALLEST, 1)];

const where = event => {
  const frame = find('.s-canvas').getBoundingClientRect();
  return [clamp((event.clientX - frame.left) / frame.width, 0, 1), clamp((event.clientY - frame.top) / frame.height, 0, 1)];
};
element.addEventListener('pointerdown', event => {
  if (event.button || !event.target.closest('.s-canvas')) return;
  const [x, y] = where(event), box = event.target.closest('.s-box');
  if (!box && regions.length >= LARGEST) return;
  const number = box ? +box.dataset.number : add([x, y, x, y]);
  held = {number, x, y, fresh: !box, from: [...regions[number - 1].box],
          change: box && !event.target.closest('.s-handle') ? 'move' : 'size'};
  find('.s-canvas').setPointerCapture(event.pointerId);
  if (!box) event.preventDefault();
});
element.addEventListener('pointermove', event => {
  if (!held) return;
  const [x, y] = where(event), one = regions[held.number - 1];
  if (held.fresh) one.box = [Math.min(x, held.x), Math.min(y, held.y), Math.max(x, held.x), Math.max(y, held.y)];
  else one.box = (held.change === 'move' ? moved : sized)(held.from, x - held.x, y - held.y);
  put(find(`.s-box[data-number="${held.number}"]`), one.box);
});
const release = () => {
  if (!held) return;
  const {number, fresh} = held, [left, top, right, bottom] = regions[number - 1].box;
  held = null;
  if (fresh && (right - left < SMALLEST || bottom - top < SMALLEST)) { regions.splice(number - 1, 1); draw(); return; }
  tell();
  if (fresh) find(`.s-places input[data-number="${number}"]`).focus({preventScroll: true});
};
element.addEventListener('pointerup', release);
element.addEventListener('pointercancel', release);
element.addEventListener('keydown', event => {
  const box = event.target.closest('.s-box');
  if (!box) return;
  const number = +box.dataset.number, one = regions[number - 1];
  const [x, y] = {ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP]}[event.key] ?? [0, 0];
  if (event.key === 'Delete' || event.key === 'Backspace') remove(number);
  else if (x || y) { one.box = (event.shiftKey ? sized : moved)(one.box, x, y); put(box, one.box); tell(); }
  else return;
  event.preventDefault();
});
element.addEventListener('input', event => {
  if (event.target.closest('.s-places')) regions[event.target.dataset.number - 1].prompt = event.target.value;
});
element.addEventListener('change', event => { if (event.target.closest('.s-places')) tell(); });
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button?.dataset.remove) remove(+button.dataset.remove);
  if (button && 'add' in button.dataset) {
    const left = (regions.length % 2) * 0.5, number = add([left, 0, left + 0.5, 1]);
    tell();
    find(`.s-box[data-number="${number}"]`).focus();
  }
});
watch('value', begin);
begin();
