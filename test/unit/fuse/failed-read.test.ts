import test from 'ava';
import { afterFailedRead, ENDED, NOTHING } from '../../../src/fuse/kernel/channel';

test('a mount that ends while a request is handed out ends well: what was written is flushed', (t) => {
  const outcomes: [string, number][] = [
    ['ENODEV', ENDED],
    ['ECONNABORTED', ENDED],
    ['ENOENT', NOTHING],
    ['EINTR', NOTHING],
    ['EAGAIN', NOTHING],
  ];
  for (const [code, meaning] of outcomes)
    t.is(afterFailedRead(Object.assign(new Error(code), { code })), meaning, code);
  t.throws(() => afterFailedRead(Object.assign(new Error('EIO'), { code: 'EIO' })), { message: 'EIO' });
});
