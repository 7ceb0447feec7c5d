/* Have the calling thread, the event loop's, wait for requests in turns. 0, or a negative errno. */
int turns_begin(void);
